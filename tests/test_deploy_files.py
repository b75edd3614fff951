"""The files in deploy/ agree with the settings, with each other and with the documentation."""

import getpass
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from agentauth.tests.test_settings import SAFE
from audit.stores.store_uri_checks import DEFAULT_LOCK_DAYS
from tests.nginx import documented

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
# Our own image; each runs as its user.
OURS = {name for name, each in SERVICES.items() if each["image"] == "agentauth"}
# The units of the nightly base backup.
BACKUP = [DEPLOY / f"systemd/agentauth-backup.{kind}" for kind in ("service", "timer")]
# Prints each variable that the settings read, with its default.
RECORD = """
import json
from agentauth import environment

read = {}

def record(name):
    reader = getattr(environment, name)

    def recording(variable, *default, **limits):
        read.setdefault(variable, str(default[0]) if default else "")
        return reader(variable, *default, **limits)

    setattr(environment, name, recording)

for name in ("env", "secret", "number", "choice"):
    record(name)
import agentauth.settings
print(json.dumps(read))
"""


def settings_read() -> dict[str, str]:
    """Each setting of production and its default; of a secret, the variable that names its file."""
    env = {"PATH": os.environ["PATH"], **SAFE}
    done = subprocess.run(
        [sys.executable, "-c", RECORD], cwd=ROOT, env=env, capture_output=True, check=True
    )
    read: dict[str, str] = json.loads(done.stdout)
    read["VAR_DIR"] = str(Path(read["VAR_DIR"]).relative_to(ROOT))
    # A section's names that are no secrets are read only if they are set.
    pages = "".join((ROOT / f"docs/keys/{page}.md").read_text() for page in ("vault", "pkcs11"))
    rows = "".join(re.findall(r"^\| `(?:VAULT|PKCS11)_.*?\|", pages, re.MULTILINE))
    read |= {name: read.get(name, "") for name in re.findall(r"`([A-Z0-9_]+)`", rows)}
    return {name: default for name, default in read.items() if f"{name}_FILE" not in read}


def test_the_example_names_every_setting_with_its_default() -> None:
    lines = (DEPLOY / ".env.example").read_text().splitlines()
    told = dict(line[1:].split("=", 1) for line in lines if re.match(r"#[A-Z0-9_]+=", line))
    assert told == settings_read()


def test_the_example_has_a_line_about_each_setting() -> None:
    lines = (DEPLOY / ".env.example").read_text().splitlines()
    for above, line in itertools.pairwise(lines):
        assert not re.match(r"#[A-Z0-9_]+=", line) or above.startswith("# "), line


def configuration(service: Mapping[str, Any]) -> list[Path]:
    """The files of this folder that the service reads."""
    told = [each.partition(":")[0] for each in service.get("volumes", [])]
    places = [DEPLOY / each for each in told if each.startswith("./")]
    return [file for each in places for file in [each, *each.rglob("*")] if file.is_file()]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_runs_without_rights_that_it_does_not_need(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "network_mode", "pid"} & service.keys()
    # These images have a user of their own.
    own = {"proxy", "prometheus", "grafana", "store", "bucket"}
    assert (name in own) != ("user" in service)
    assert service.get("user", "") not in {"root", "0", "0:0"}
    # No port is open to the network.
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_the_secrets_that_it_names_and_shows_none(name: str) -> None:
    service = SERVICES[name]
    environment = service.get("environment", {})
    named = set(re.findall(r"/run/secrets/([\w.]+)", json.dumps(service)))
    given = service.get("secrets", [])
    targets = {each["source"] for each in given if isinstance(each, dict)}
    mounted = {each for each in given if isinstance(each, str)} | targets
    for text in map(Path.read_text, configuration(service)):
        named |= set(re.findall(r"/run/secrets/([\w.]+)", text))
    assert mounted == named | targets
    secret = re.compile(r"PASSWORD|SECRET|TOKEN|PRIVATE|CREDENTIALS")
    assert [each for each in environment if secret.search(each) and "_FILE" not in each] == []
    assert not re.search(r"://[^/@:]*:[^/@]+@", json.dumps(service))


def test_verifier_has_no_login_for_keys_or_store() -> None:
    verifier = SERVICES["verifier"]
    assert set(verifier["secrets"]) == {
        *("secret_key", "subject_key", "redis_url"),
        *("metrics_token", "database_verifier_url", "ca.pem"),
    }
    logins = {"VAULT_SECRET_ID_FILE", "AWS_SHARED_CREDENTIALS_FILE"}
    assert {verifier["environment"][name] for name in logins} == {""}
    for name in OURS - {"verifier"}:
        assert all(SERVICES[name]["environment"][each] for each in logins), name


# The servers that each process of ours must reach; the others it must not.
_WITH_STATE = {"postgres", "redis", "openbao", "store"}
_REACHED = {
    "init": _WITH_STATE,
    "web": _WITH_STATE,
    "verifier": {"postgres", "redis"},
    "jobs": _WITH_STATE,
}


@pytest.mark.parametrize("name", sorted(OURS))
def test_process_reaches_over_networks_the_servers_that_it_needs(name: str) -> None:
    own = set(SERVICES[name]["networks"])
    reached = {each for each in _WITH_STATE if own & set(SERVICES[each]["networks"])}
    assert reached == _REACHED[name]


def test_servers_with_state_have_no_way_out() -> None:
    networks = COMPOSE["networks"]
    for name in ("postgres", "pgbouncer", "redis", "openbao", "store", "bucket"):
        assert all(networks[each]["internal"] for each in SERVICES[name]["networks"]), name


def test_store_gives_the_registry_the_rights_of_the_page_in_its_bucket() -> None:
    page = " ".join((ROOT / "docs/operations.md").read_text().split())
    [listed] = re.findall(r"They need (.*?) no more\. .*?MinIO asks for", page)
    [minios] = re.findall(r"MinIO asks for `(s3:\w+)` too", page)
    policy = json.loads((DEPLOY / "minio/agentauth.json").read_text())
    allowed = {action for each in policy["Statement"] for action in each["Action"]}
    assert allowed == {*re.findall(r"`(s3:\w+)`", listed), minios}
    [bucket] = re.findall(r"s3://(\w+)/", COMPOSE["x-settings"]["AUDIT_STORE"])
    resources = {place for each in policy["Statement"] for place in each["Resource"]}
    assert resources == {f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"}
    assert {each["Effect"] for each in policy["Statement"]} == {"Allow"}


def test_bound_of_locks_lets_a_put_with_the_default_lock_pass() -> None:
    page = (ROOT / "docs/operations.md").read_text()
    [text] = re.findall(
        r"^```json\n(\{.*?remaining-retention-days.*?)^```$", page, re.MULTILINE | re.DOTALL
    )
    [statement] = json.loads(text)["Statement"]
    days = statement["Condition"]["NumericGreaterThan"]["s3:object-lock-remaining-retention-days"]
    # A day more: clocks differ, and a part of a day may count as one.
    assert int(days) == DEFAULT_LOCK_DAYS + 1
    assert (statement["Effect"], statement["Action"]) == ("Deny", "s3:PutObjectRetention")


def test_registry_is_not_the_administrator_of_the_store(tmp_path: Path) -> None:
    made = make_secrets(tmp_path)
    user, password = (made / "store_user").read_text().split()
    credentials = (made / "store_credentials").read_text()
    assert f"aws_access_key_id = {user}\naws_secret_access_key = {password}\n" in credentials
    assert user != SERVICES["store"]["environment"]["MINIO_ROOT_USER"]
    assert password not in (made / "store_password").read_text()
    has = {name for name in SERVICES if "store_password" in SERVICES[name].get("secrets", [])}
    assert has == {"store", "bucket"}


def make_secrets(folder: Path) -> Path:
    """What make-secrets.sh creates in a copy of its folder."""
    done = run_make_secrets(folder)
    assert done.returncode == 0, done.stderr
    return folder / "secrets"


def run_make_secrets(folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    script = folder / "make-secrets.sh"
    script.write_text((DEPLOY / "make-secrets.sh").read_text())
    command = ["sh", str(script)]
    return subprocess.run(
        command, check=False, capture_output=True, text=True, env=os.environ | env
    )


@pytest.mark.parametrize(
    ("passwd", "members", "other"),
    [
        ("me:x:{uid}:{gid}::/:/bin/sh|ann:x:4242:{gid}::/home/ann:/bin/bash", "", "ann"),
        ("me:x:{uid}:{gid}::/:/bin/sh|ann:x:4242:99::/home/ann:/bin/bash", "{me},bob", "bob"),
        ("me:x:{uid}:{gid}::/:/bin/sh|daemon:x:2:{gid}::/:/usr/sbin/nologin", "{me}", ""),
    ],
    ids=["by primary group", "by membership", "only an account without a shell"],
)
def test_secrets_are_not_made_for_a_group_with_other_members(
    tmp_path: Path, passwd: str, members: str, other: str
) -> None:
    here = {"uid": os.getuid(), "gid": os.getgid(), "me": getpass.getuser()}
    lines = passwd.replace("me:", "{me}:", 1).format(**here).replace("|", "\n")
    double = tmp_path / "bin/getent"
    double.parent.mkdir()
    group = f"group:x:{here['gid']}:{members.format(**here)}"
    double.write_text(
        f"#!/bin/sh\ncase $1-$2 in passwd-) echo '{lines}' ;; "
        f"group-{here['gid']}) echo '{group}' ;; esac\n"
    )
    double.chmod(0o755)
    done = run_make_secrets(tmp_path, PATH=f"{double.parent}:{os.environ['PATH']}")
    assert (done.returncode == 0, (tmp_path / "secrets").exists()) == (not other, not other)
    assert (f"could read the secrets: {other}." in done.stderr) is bool(other)


def test_every_secret_has_a_file_that_make_secrets_creates(tmp_path: Path) -> None:
    files = {each.name: each.stat().st_mode & 0o777 for each in make_secrets(tmp_path).iterdir()}
    assert files.keys() == COMPOSE["secrets"].keys()
    # The settings refuse a secret's file that every user can read.
    assert set(files.values()) == {0o640}
    assert {each["file"] for each in COMPOSE["secrets"].values()} == {
        f"secrets/{name}" for name in files
    }
    script = tmp_path / "make-secrets.sh"
    again = subprocess.run(["sh", script], check=False, capture_output=True, text=True)
    assert (again.returncode, "nothing was changed" in again.stderr) == (1, True)


# Each names a password or a key, or a URL that contains one.
_SECRET = re.compile(r"""(?x) \$\{? (OWNER|SERVING|VERIFIER|REDIS|BROKER|UNSEAL|SECRET_ID
    |DATABASE_URL|DATABASE_OWNER_URL|REDIS_URL|\w*PASSWORD|\w*TOKEN) \b | \$\(cat""")
# A program's own process; the shell's built-in `echo` and `printf` have none.
_PROGRAM = re.compile(r"(?:^|[\s/])(psql|pg_\w+|createdb|bao|redis-cli|mc|curl|agentauth)\s")


def test_no_printed_command_has_a_secret_as_an_argument() -> None:
    """Every user of the host can read a running command's arguments."""
    pages = {page: page.read_text() for page in (ROOT / "docs").rglob("*.md")}
    blocks = {
        page: "".join(re.findall(r"```sh\n(.*?)```", pages[page], re.DOTALL)) for page in pages
    }
    blocks[DEPLOY / "compose.yaml"] = (DEPLOY / "compose.yaml").read_text().replace("$$", "$")
    lines = [
        (page.name, command)
        for page, text in blocks.items()
        for line in text.replace("\\\n", " ").splitlines()
        for command in re.split(r"\|+|;|&&", line)
        if (found := _PROGRAM.search(command)) and _SECRET.search(command, found.end())
    ]
    assert lines == []


def test_the_proxy_of_compose_is_that_of_the_installation() -> None:
    site = documented(web=8000)
    for here, there in {
        "server 127.0.0.1:8000;": "server web:8000;",
        "listen 443 ssl;": "listen 8443 ssl;",
        "server_name localhost;": "server_name _;",
        "access.log asked": "/var/log/nginx/access.log combined",
        "/etc/nginx/agentauth/certificate.pem": "/run/secrets/proxy.pem",
        "/etc/nginx/agentauth/key.pem": "/run/secrets/proxy.key",
    }.items():
        assert here in site
        site = site.replace(here, there)
    verifier = "upstream agentauth_verifier {\n    server "
    site = site.replace(f"{verifier}web:8000;", f"{verifier}verifier:8001;")
    assert (DEPLOY / "nginx/agentauth.conf").read_text().partition("\n")[2] == site


def test_processes_of_compose_run_as_the_image_does() -> None:
    [user] = re.findall(r"^USER (\d+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert {SERVICES[name]["user"] for name in OURS} == {f"{user}:{user}"}
    assert sorted(OURS) == ["init", "jobs", "verifier", "web"]


def test_every_image_is_of_a_named_version() -> None:
    named = [each["image"] for name, each in SERVICES.items() if "build" not in each]
    named += re.findall(r"^ *FROM (\S+)$", (DEPLOY / "compose.yaml").read_text(), re.MULTILINE)
    assert all(re.search(r":(v|RELEASE\.)?\d+[.\-]\d+", image) for image in named), named


def test_both_configurations_of_prometheus_differ_in_addresses_alone() -> None:
    """The rules and dashboards name the job and the label `process`."""

    def without_addresses(name: str) -> Any:
        told = yaml.safe_load((DEPLOY / "prometheus" / name).read_text())
        [job] = told["scrape_configs"]
        job["authorization"]["credentials_file"] = ""
        for each in job["static_configs"]:
            each["targets"] = len(each["targets"])
        return told

    assert without_addresses("compose.yml") == without_addresses("prometheus.yml")


def test_the_timer_starts_the_script_with_settings_that_it_needs() -> None:
    """tests/faults/test_backup_drill.py runs the script, and restores what it makes."""
    service, timer = (each.read_text() for each in BACKUP)
    script = DEPLOY / "backup/base-backup.sh"
    assert f"ExecStart=/opt/agentauth/{script.relative_to(ROOT)}\n" in service
    assert script.stat().st_mode & 0o111 == 0o111
    needs = set(re.findall(r"\$\{(\w+):[?-]", script.read_text())) - {"first"}
    # PostgreSQL's own user: its connection needs no password.
    assert "User=postgres\n" in service
    told = service.partition("# ")[2].partition("\n")[0]
    assert all(name in told for name in needs), needs
    [calendar] = re.findall(r"^OnCalendar=(.+)$", timer, re.MULTILINE)
    assert re.fullmatch(r"\*-\*-\* \d\d:\d\d:\d\d", calendar)
    without = subprocess.run(
        ["sh", script],
        env={"PATH": os.environ["PATH"]},
        check=False,
        capture_output=True,
        text=True,
    )
    assert (without.returncode, "BACKUP_DIR" in without.stderr) == (2, True)
