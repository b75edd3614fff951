"""What runs at the installed system: each service of the page, as its own user, with one JSON object a line for its log."""

import json
import os
import re
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.production.environment import UID
from tests.production.registry import ProductionRegistry
from tests.production.units import PATH

pytestmark = pytest.mark.production

OURS = ("web", "verifier", "beat", "worker")


def test_each_service_runs_as_the_user_of_the_service(production: ProductionRegistry) -> None:
    expected = UID if os.geteuid() == 0 else os.geteuid()
    for name in OURS:
        status = Path(f"/proc/{production.processes[f'agentauth-{name}']}/status").read_text()
        [uids] = re.findall(r"^Uid:\t(.+)$", status, re.MULTILINE)
        assert set(map(int, uids.split())) == {expected}, name


@pytest.mark.parametrize("name", [*OURS, "jobs"])
def test_each_line_of_a_log_is_one_json_object(production: ProductionRegistry, name: str) -> None:
    # The last may be being written.
    lines = (production.home / f"logs/agentauth-{name}.log").read_text().splitlines()[:-1]
    for line in lines:
        assert json.loads(line).keys() >= {"at", "level", "logger", "message"}, line


def test_the_service_can_write_its_own_folder_alone(production: ProductionRegistry) -> None:
    """As the image has it: the program belongs to another user."""
    app = production.home / "opt/agentauth"
    for folder in (app, app / "agentauth", app / "staticfiles", production.home / "etc/agentauth"):
        assert folder.stat().st_uid == os.geteuid()
        assert not folder.stat().st_mode & 0o022


def test_the_front_page_in_production_offers_no_demo_of_the_checkout(production: ProductionRegistry) -> None:
    page = httpx.get(f"{production.url}/").text
    assert "make demo" not in page
    assert f"--registry {production.url}" in page


def test_the_command_takes_nothing_from_the_callers_environment(production: ProductionRegistry) -> None:
    """A root token that a shell still exports, or a setting, must not reach the service's process."""
    command = str(production.home / "usr/local/bin/agentauth")
    code = "import os; print(sorted(name for name in os.environ if name in {'BAO_TOKEN', 'AUDIT_TYPO'}))"
    # Settings refuse an unknown name that begins as ours do.
    outside = {"PATH": PATH, "BAO_TOKEN": "root", "AUDIT_TYPO": "x"}
    done = subprocess.run(
        [command, "shell", "--no-imports", "-c", code],
        env=outside, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


SECRETS = (
    "etc/agentauth/agentauth.env",
    "etc/agentauth/verifier.env",
    "etc/agentauth/owner.env",
    "etc/redis/redis.conf",
    "root/openbao-init.json",
)


def test_a_step_run_again_overwrites_no_secret(production: ProductionRegistry) -> None:
    """In a new shell, which has none of the variables of the first and goes on after a block that failed."""

    def found() -> dict[str, bytes]:
        return {name: (production.home / name).read_bytes() for name in SECRETS}

    before = found()
    assert len(production.guarded) == 3
    for block in production.guarded:
        script = f"systemctl() {{ echo restarted; }}\n{block}"
        done = subprocess.run(
            ["bash", "--norc", "--noprofile", "-c", script],
            env={"PATH": PATH}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode != 0, block
        assert "restarted" not in done.stdout
    assert found() == before
