"""A process with other settings does not start beside the installed system, which is unaffected."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import httpx
import pytest

from tests.asking import SHARED, answered
from tests.flows.pair import InstalledPair
from tests.live import ROOT
from tests.postgres import free_port
from tests.production.registry import ProductionRegistry
from tests.production.units import read_environment
from tests.sampling import one_in
from verifier.models import Home

pytestmark = pytest.mark.production
PATIENCE_SECONDS = 120
OTHER_KEY = "an0ther-secret-key-0123456789-abcdefghijklmnopqrstuvwxyz"
VERIFIER = [
    "-m",
    "gunicorn",
    "-c",
    "python:agentauth.server.verifier_gunicorn",
    "agentauth.server.verifier_application:application",
]
CELERY = ["-m", "celery", "-A", "agentauth"]
# Each kind of process, and each setting that would make it answer differently.
ODD = [
    ("web", {"SECRET_KEY": OTHER_KEY}, "SECRET_KEY"),
    ("web", {"REDIS_URL": ""}, "REDIS_URL"),
    ("web", {"PUBLIC_URL": "https://another.example.com"}, "PUBLIC_URL"),
    ("verifier", {"REDIS_URL": ""}, "REDIS_URL"),
    ("verifier", {"SECRET_KEY": OTHER_KEY}, "SECRET_KEY"),
    ("verifier", {"PUBLIC_URL": "https://another.example.com"}, "PUBLIC_URL"),
    ("jobs", {"REDIS_URL": ""}, "REDIS_URL"),
    ("jobs", {"AUDIT_STORE": "file:/tmp/elsewhere"}, "AUDIT_STORE"),
    ("worker", {"SECRET_KEY": OTHER_KEY}, "SECRET_KEY"),
    ("beat", {"SUBJECT_KEY": "2:" + 43 * "A"}, "SUBJECT_KEY"),
]


def command(kind: str) -> list[str]:
    bind = f"127.0.0.1:{free_port()}"
    commands = {
        "web": ["-m", "agentauth", "web", "--bind", bind],
        "verifier": [*VERIFIER[:-1], "--bind", bind, VERIFIER[-1]],
        "jobs": ["manage.py", "jobs"],
        "worker": [*CELERY, "worker", "-P", "solo"],
        "beat": [*CELERY, "beat"],
    }
    return [sys.executable, *commands[kind]]


@pytest.mark.parametrize(
    ("kind", "changes", "name"), one_in(3, ODD), ids=[f"{kind} {name}" for kind, _, name in ODD]
)
def test_SA_14_a_process_with_other_settings_is_not_started(
    production: ProductionRegistry, tmp_path: Path, kind: str, changes: dict[str, str], name: str
) -> None:
    # A server empties its metrics folder at start, so it must not be the installed one's.
    metrics = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    home = Home.objects.get()
    own = (
        read_environment(production.home / "etc/agentauth/verifier.env")
        if kind == "verifier"
        else {}
    )
    ended = subprocess.run(
        command(kind), cwd=ROOT, env=production.env | own | metrics | changes,
        timeout=PATIENCE_SECONDS,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = (ended.stdout + ended.stderr).strip()
    assert ended.returncode != 0, said
    assert f"not started: {name} of this process" in said
    assert (said.count("not started"), said.count("Traceback")) == (1, 0), said
    for secret in (OTHER_KEY, production.env["SECRET_KEY"], production.env["SUBJECT_KEY"][2:]):
        assert secret not in said
    for url in (production.web_url, production.verifier_url):
        ready = httpx.get(f"{url}/health/ready", timeout=30).json()
        assert ready["checks"]["configuration"] == "ok"
    found = Home.objects.get()
    assert (found.epoch, found.kind, found.leaving_at) == (home.epoch, home.kind, home.leaving_at)


def test_a_verifier_with_the_role_of_another_process_ends_with_one_line(
    production: ProductionRegistry, tmp_path: Path
) -> None:
    ended = subprocess.run(
        command("verifier"), cwd=ROOT,
        env=production.env | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
        timeout=PATIENCE_SECONDS,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    [line] = [line for line in ended.stderr.splitlines() if "not started" in line]
    assert (ended.returncode, "Traceback" in ended.stderr) == (1, False)
    assert line.startswith(
        "agentauth: not started: the role of DATABASE_URL has more rights than a verifier needs"
    )
    assert line.endswith("`agentauth --owner grant_verifier_role ROLE` has restricted.")


@pytest.mark.parametrize(
    ("said", "status"),
    [
        # The proxy omitted it, or wrote that the client came by http.
        ([], 301),
        (["http"], 301),
        # The client forged one, and the proxy appended what it saw.
        (["https, http"], 301),
        (["https", "http"], 301),
        (["HTTPS"], 301),
        (["http, https"], None),
        (["https"], None),
    ],
)
def test_a_scheme_not_set_by_our_proxy_is_redirected(
    pair: InstalledPair, said: list[str], status: int | None
) -> None:
    for port, path in ((pair.web.port, "/v1/grants"), (pair.lean.port, "/v1/verify")):
        headers = [("Host", "localhost"), *(("X-Forwarded-Proto", each) for each in said)]
        url = f"http://127.0.0.1:{port}{path}"
        ask = partial(httpx.post, url, headers=headers, json={}, timeout=30)
        answer = answered(ask, later=SHARED)
        assert answer.status_code == (status or 401), (path, answer.text)
        assert answer.headers.get("Location") == (f"https://localhost{path}" if status else None)
