"""deploy/compose.yaml starts a registry: its own commands, settings, files and order, as processes.

tests/compose.py says what replaces the containers, and what does not run.
"""

import re
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import kubernetes
from tests.compose import NOT_RUN, Stack, running
from tests.live import ROOT
from tests.postgres import free_port
from tests.waiting import until

pytestmark = [
    pytest.mark.long,
    pytest.mark.flow,
    pytest.mark.compose,
    pytest.mark.postgres,
    pytest.mark.redis,
    pytest.mark.nginx,
    pytest.mark.pgbouncer,
    pytest.mark.prometheus,
    pytest.mark.kubernetes,
]


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with running() as made:
        yield made


@pytest.fixture
def http(stack: Stack) -> Iterator[httpx.Client]:
    trust = ssl.create_default_context(cafile=stack.authority)
    with httpx.Client(base_url=stack.url, verify=trust, timeout=30) as client:
        yield client


def test_it_is_ready_through_the_proxy(stack: Stack, http: httpx.Client) -> None:
    def is_ready() -> bool:
        ready = http.get("/health/ready")
        return (ready.status_code, set(ready.json()["checks"].values())) == (200, {"ok"})

    # The start waits for the status alone: trials of a write and a signature may still be running.
    until(is_ready, "it is not ready")
    assert http.get("/sign-in/").status_code == 200
    # The verifier's own process answers this.
    assert http.post("/v1/verify").status_code == 401
    assert stack.running.keys() | {"postgres"} | NOT_RUN == stack.services.keys()


def test_only_the_first_administrator_is_missing(stack: Stack) -> None:
    done = stack.manage("jobs", "check", "--deploy")
    assert re.findall(r"agentauth\.([EW]\d+)", done.stderr) == ["E049"], done.stderr


def test_prometheus_scrapes_each_process(stack: Stack) -> None:
    def states() -> dict[str, str]:
        url = f"http://127.0.0.1:{stack.ports['prometheus']}/api/v1/targets"
        told: Any = httpx.get(url, timeout=30).json()
        active = told["data"]["activeTargets"]
        return {each["labels"]["process"]: each["health"] for each in active}

    # It scrapes every 15 s; on a busy machine one of the three may be too late for a scrape.
    until(lambda: states() == dict.fromkeys(("web", "verifier", "jobs"), "up"), "not all are up")


def pod_here(
    stack: Stack, process: str, folder: Path, port: int
) -> tuple[list[str], dict[str, str]]:
    """Command and variables of a pod of `standard`, with the files of its Secret in `folder`.

    What all processes share has the values of this system. A pod logs in at Vault with a token of
    its cluster; here it is AppRole, as in compose.yaml.
    """
    told = kubernetes.environment("standard", process)
    pod = kubernetes.container(kubernetes.pods("standard")[process])
    shared = stack.environment("init")
    names = {"database_web_url": "database_pool_url", "email_host_password": "store_password"}
    for name in kubernetes.secret_files()[process]:
        (folder / name).symlink_to(stack.deploy / "secrets" / names.get(name, name))
    env = {
        name: value if name.endswith("_FILE") else shared.get(name) or value
        for name, value in told.items()
    }
    env |= {"PATH": shared["PATH"], "VAR_DIR": str(folder), "VAULT_CACERT": str(stack.authority)}
    if env.pop("VAULT_KUBERNETES_TOKEN_FILE", ""):
        env |= {name: shared[name] for name in ("VAULT_ROLE_ID", "VAULT_SECRET_ID_FILE")}
    own = pod["ports"][0]["containerPort"]
    moved = {str(kubernetes.SECRETS): str(folder), f"0.0.0.0:{own}": f"127.0.0.1:{port}"}

    def here(text: str) -> str:
        for there, instead in moved.items():
            text = text.replace(there, instead)
        return text

    command = [sys.executable, *map(here, pod["command"][1:])]
    return command, {name: here(value) for name, value in env.items()}


@pytest.mark.parametrize("process", ["web", "verifier", "jobs"])
def test_a_pod_of_kubernetes_serves_with_its_secret_alone(
    stack: Stack, process: str, tmp_path: Path
) -> None:
    port = free_port()
    command, env = pod_here(stack, process, tmp_path, port)
    with (tmp_path / "log").open("wb") as log:
        running = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log)

    def is_ready() -> bool:
        assert running.poll() is None, (tmp_path / "log").read_text()
        try:
            answer = httpx.get(f"http://127.0.0.1:{port}/health/ready", timeout=30)
        except httpx.TransportError:
            return False
        return set(answer.json()["checks"].values()) == {"ok"}

    try:
        until(is_ready, "it is not ready")
    finally:
        running.terminate()
        running.wait(120)
    assert running.returncode == 0
