"""deploy/systemd and the settings of docs/install.md: each process has what it needs, no more."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from agentauth.tests.test_settings import SAFE
from tests.forked import manage
from tests.systemd import exposed, needs_systemd

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "deploy/systemd"
UNITS = {
    name: (FOLDER / f"agentauth-{name}.service").read_text()
    for name in ("beat", "jobs", "verifier", "web", "worker")
}
# What the units do not share, besides their description and command.
OWN = {
    name: {
        "User=agentauth",
        "EnvironmentFile=/etc/agentauth/agentauth.env",
        f"EnvironmentFile=-/etc/agentauth/{name}.env",
        "ReadWritePaths=/var/lib/agentauth",
    }
    for name in UNITS
} | {
    "verifier": {
        "User=agentauth-verifier",
        "EnvironmentFile=/etc/agentauth/verifier.env",
        "RuntimeDirectory=agentauth-verifier",
        "RuntimeDirectoryMode=0700",
        "Environment=VAR_DIR=%t/agentauth-verifier",
    }
}
SECRET = "never-in-the-verifier"
# Each way to log in to a key service, with a placeholder for each secret.
LOGINS = {
    "token": {"KEY_BACKEND": "vault", "VAULT_TOKEN": SECRET},
    "token in a file": {"KEY_BACKEND": "vault", "VAULT_TOKEN_FILE": SECRET},
    "approle": {"KEY_BACKEND": "vault", "VAULT_ROLE_ID": "a-role", "VAULT_SECRET_ID": SECRET},
    "pkcs11": {
        "KEY_BACKEND": "pkcs11:agentauth", "PKCS11_MODULE": "/a.so", "PKCS11_PIN_FILE": SECRET,
    },
    "awskms": {"KEY_BACKEND": "awskms:eu-central-1"},
}  # fmt: skip


def test_units_differ_in_name_settings_and_command_alone() -> None:
    assert {each.stem for each in FOLDER.glob("*.service")} == {
        *(f"agentauth-{name}" for name in UNITS),
        "agentauth-backup",
    }
    lines = {
        name: {line for line in text.splitlines() if "=" in line and not line.startswith("#")}
        for name, text in UNITS.items()
    }
    common = set.intersection(*lines.values())
    for name, own in lines.items():
        differ = {each for each in own - common if not re.match("Description=|ExecStart=", each)}
        assert differ == OWN[name], name
    # The same commands as in compose.yaml, on this host alone.
    services = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())["services"]
    for name in ("web", "verifier", "jobs"):
        command = " ".join(services[name]["command"]).replace("0.0.0.0", "127.0.0.1")
        assert f"ExecStart=/opt/agentauth/.venv/bin/{command}\n" in UNITS[name]


@needs_systemd
def test_each_unit_runs_in_a_sandbox() -> None:
    units = sorted(FOLDER.glob("*.service"))
    assert len(units) == len(UNITS) + 1
    assert exposed(units) == {}


def copied(folder: Path, settings: dict[str, str]) -> dict[str, str]:
    """What install.md's block copies from these settings into the verifier's."""
    [block] = re.findall(
        r"^```sh\n([^`]*verifier\.env\.new[^`]*)^```$",
        (ROOT / "docs/install.md").read_text(),
        re.MULTILINE,
    )
    lines = "".join(f"{name}='{value}'\n" for name, value in settings.items())
    (folder / "agentauth.env").write_text(lines)
    (folder / "verifier.env").write_text("DATABASE_URL='postgres://verifier@127.0.0.1/agentauth'\n")
    script = block.replace("/etc/agentauth", str(folder))
    for _ in range(2):
        # The second run changes nothing.
        subprocess.run(["bash", "-c", script], check=True)
        assert (folder / "verifier.env").stat().st_mode & 0o777 == 0o600
    found = (folder / "verifier.env").read_text().splitlines()
    assert len(set(found)) == len(found)
    return dict(line.replace("'", "").split("=", 1) for line in found)


@pytest.mark.parametrize("way", LOGINS)
def test_the_verifier_starts_without_the_login_for_the_keys(tmp_path: Path, way: str) -> None:
    given = {name: value for name, value in SAFE.items() if not name.startswith("VAULT_")}
    given |= {"VAULT_ADDR": "https://vault.example.com"} | LOGINS[way]
    settings = copied(tmp_path, given | dict.fromkeys(("CELERY_BROKER_URL", "NEW_SECRET"), SECRET))
    assert SECRET not in settings.values()
    assert not {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "EMAIL_HOST"} & settings.keys()
    assert settings["DATABASE_URL"] == "postgres://verifier@127.0.0.1/agentauth"
    env = {"PATH": os.environ["PATH"], "VAR_DIR": str(tmp_path)} | settings
    done = manage("check", env=env)
    assert done.returncode == 0, done.stderr
