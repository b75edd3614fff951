"""The installed services: each runs as its own user and logs one JSON object per line."""

import contextlib
import json
import os
import re
import secrets
import subprocess
import time
from pathlib import Path

import httpx
import pytest

from tests.actors import scene
from tests.asking import answered
from tests.production.environment import USERS
from tests.production.registry import ProductionRegistry
from tests.production.units import PATH
from tests.waiting import until

pytestmark = pytest.mark.production

OURS = ("web", "verifier", "beat", "worker")


def test_each_service_runs_as_the_user_that_its_unit_names(production: ProductionRegistry) -> None:
    for name in OURS:
        user = "agentauth-verifier" if name == "verifier" else "agentauth"
        expected = USERS[user][0] if os.geteuid() == 0 else os.geteuid()
        status = Path(f"/proc/{production.processes[f'agentauth-{name}']}/status").read_text()
        [uids] = re.findall(r"^Uid:\t(.+)$", status, re.MULTILINE)
        assert set(map(int, uids.split())) == {expected}, name


def test_one_worker_and_beat_number_the_log(production: ProductionRegistry) -> None:
    """Decisions too, which the verifier leaves in Redis."""
    read = {"type": "read", "resource": "calendar"}
    place = scene(production, capabilities=[read], envelope={})
    token = place.token()
    assert answered(lambda: place.ask(place.question(token, read))).json()["valid"]

    def is_numbered() -> bool:
        events = place.api("GET", "/v1/audit/events").json()["results"]
        numbers = {each["kind"]: each["leaf_index"] for each in events}
        return "verifier.decision.allowed" in numbers and None not in numbers.values()

    until(is_numbered, "no process numbers the log")
    for name in ("worker", "beat"):
        assert sessions().count(production.processes[f"agentauth-{name}"]) == 1, name


def sessions() -> list[int]:
    """The session of each process: each service was started in its own."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # pid (name) state parent group session …; a name may contain any character.
            found.append(int(status.read_text().rpartition(")")[2].split()[3]))
    return found


@pytest.mark.parametrize("name", [*OURS, "jobs"])
def test_log_has_one_json_object_a_line_and_reports_the_start(
    production: ProductionRegistry, name: str
) -> None:

    def logged() -> list[dict[str, str]]:
        # The last line may be incomplete.
        whole, _, _ = (production.home / f"logs/agentauth-{name}.log").read_text().rpartition("\n")
        return [json.loads(line) for line in whole.splitlines()]

    # A process may still be starting when the installation is complete.
    started = "the startup checks have passed"
    until(
        lambda: any(line["message"].startswith(started) for line in logged()),
        f"{name} does not report its start",
    )
    for line in logged():
        assert line.keys() >= {"at", "level", "logger", "message"}, line


def test_the_service_can_write_its_own_folder_alone(production: ProductionRegistry) -> None:
    """As in the image: the program's files belong to another user."""
    app = production.home / "opt/agentauth"
    for folder in (app, app / "agentauth", app / "staticfiles", production.home / "etc/agentauth"):
        assert folder.stat().st_uid == os.geteuid()
        assert not folder.stat().st_mode & 0o022


def test_the_front_page_in_production_offers_no_demo_of_the_checkout(
    production: ProductionRegistry,
) -> None:
    page = httpx.get(f"{production.url}/", timeout=30).text
    assert "make demo" not in page
    assert f"--registry {production.url}" in page


def test_no_secret_of_a_link_is_in_the_logs_of_nginx(production: ProductionRegistry) -> None:
    """At both ports: a person may type the address without `https://`."""
    for place in (production.url, f"http://127.0.0.1:{production.ports['http']}"):
        for path in ("/setup/a-secret-code/", "/claim/a-secret-code/", "/a-logged-path/"):
            assert httpx.get(f"{place}{path}", timeout=30).status_code < 500
    logs = [production.home / f"logs/nginx-{each}.log" for each in ("access", "error")]
    until(lambda: logs[0].read_text().count("/a-logged-path/") == 2, "nginx logs no path")
    assert not any("a-secret-code" in each.read_text() for each in logs)


def test_the_command_takes_nothing_from_the_callers_environment(
    production: ProductionRegistry,
) -> None:
    """A root token or setting still exported in a shell must not reach the service's process."""
    command = str(production.home / "usr/local/bin/agentauth")
    code = (
        "import os; print(sorted(name for name in os.environ if name in {'BAO_TOKEN', "
        "'AUDIT_TYPO'}))"
    )
    # Settings refuse unknown names that begin with ours.
    outside = {"PATH": PATH, "BAO_TOKEN": "root", "AUDIT_TYPO": "x"}
    done = subprocess.run(
        [command, "shell", "--no-imports", "-c", code],
        env=outside, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_check_deploy_finds_nothing_but_what_the_page_names(production: ProductionRegistry) -> None:
    """At its step 10; another test may have created the first administrator meanwhile."""
    command = [str(production.home / "usr/local/bin/agentauth"), "check", "--deploy"]
    done = subprocess.run(command, env={"PATH": PATH}, capture_output=True, text=True, check=False)
    found = re.findall(r"\((\w+\.[EW]\d+)\)", done.stderr)
    # The page configures no mail server.
    assert found in (["agentauth.E049", "agentauth.W053"], ["agentauth.W053"]), done.stderr


SECRETS = (
    "etc/agentauth/agentauth.env",
    "etc/agentauth/verifier.env",
    "etc/agentauth/owner.env",
    "etc/redis/redis.conf",
    "root/openbao-init.json",
)


def test_no_password_of_a_role_is_in_the_log_of_postgresql(production: ProductionRegistry) -> None:
    """A second run fails, and PostgreSQL logs a statement that failed."""
    password = secrets.token_hex(24)
    done = subprocess.run(
        ["bash", "--norc", "--noprofile", "-c", production.roles],
        env={"PATH": PATH, "OWNER": password, "SERVING": password, "VERIFIER": password},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, "already exists" in done.stderr) == (3, True), done.stderr
    assert password not in done.stdout + done.stderr
    assert password not in production.database_log.read_text(errors="replace")


def test_a_step_run_again_overwrites_no_secret(production: ProductionRegistry) -> None:
    """In a new shell, which lacks the variables of the first and goes on after a failed block."""

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


def test_openbao_is_not_initialised_again_without_its_file(production: ProductionRegistry) -> None:
    """The page says to delete the file once its content is stored elsewhere."""
    [block] = [each for each in production.guarded if "operator init" in each]
    block = block.replace("/openbao-init.json", "/deleted-init.json")
    done = subprocess.run(
        ["bash", "--norc", "--noprofile", "-c", block],
        env={"PATH": PATH}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, "OpenBao is initialised" in done.stderr) == (1, True), done.stderr
    assert list((production.home / "root").glob("deleted-init.json*")) == []


def test_DJ_25_limits_hold_and_a_forged_address_changes_nothing(
    production: ProductionRegistry,
) -> None:
    headers = {"Origin": production.url, "Sec-Fetch-Site": "same-origin"}
    with httpx.Client(base_url=production.url, headers=headers, timeout=30) as client:
        begun, allowed = time.monotonic(), 0
        limited: list[httpx.Response] = []
        while len(limited) < 5 and allowed < 300:
            forged = {"X-Forwarded-For": f"203.0.113.{allowed % 256}"}
            answer = client.post("/claim/unknown/statement", json={}, headers=forged)
            if answer.status_code == 429:
                limited.append(answer)
            else:
                allowed += 1
    # 60 at once, and two a second; each of two processes allows half, and one may have had all
    # calls.
    assert 30 <= allowed <= 62 + 2 * (time.monotonic() - begun)
    assert limited[0].json()["error"] == "rate_limited"
    assert int(limited[0].headers["Retry-After"]) >= 1
    # A busy machine makes a process unready for a moment.
    until(
        lambda: httpx.get(f"{production.url}/health/ready", timeout=30).status_code == 200,
        "it is not ready",
    )
