"""gunicorn takes SCRIPT_NAME from a header if the peer may be a proxy: it moves no checked path."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from agentauth.integrations.tests.cases import refused
from agentauth.integrations.tests.conformance import AUDIENCE, SECRET, Site, verifying
from agentauth.integrations.tests.test_forward_auth import configured
from tests.live import ROOT
from tests.postgres import free_port
from tests.time_limits import within

MOVED = "/inner/calendar/work"


@contextmanager
def behind_gunicorn(
    name: str, *options: str, prefix: str = "", file: Path = Path("unused")
) -> Iterator[Site]:
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", "--bind", f"127.0.0.1:{port}", "--threads", "2"]
    with verifying() as registry:
        settings = {
            "AGENTAUTH_REGISTRY": registry.url,
            "AGENTAUTH_CLIENT_ID": "id",
            "AGENTAUTH_CLIENT_SECRET": "secret",
            "AGENTAUTH_AUDIENCE": AUDIENCE,
            "PREFIX": prefix,
            "FILE": str(file),
        }
        if name == "forward_auth":
            file.write_text(configured(registry.url))
        with subprocess.Popen(
            [*command, *options, f"agentauth.integrations.tests.moved_sites:{name}()"],
            cwd=ROOT,
            env=os.environ | settings,
            stderr=subprocess.DEVNULL,
        ) as server:
            try:
                url = f"http://127.0.0.1:{port}"
                with httpx.Client(trust_env=False, timeout=60) as client:
                    deadline = time.monotonic() + within(30)
                    while not answers(client, url):
                        assert time.monotonic() < deadline, "gunicorn did not start"
                        time.sleep(0.05)
                    yield Site(url, client, registry, frozenset())
            finally:
                server.terminate()


def answers(client: httpx.Client, url: str) -> bool:
    try:
        return client.get(url, headers={"Host": "api.sp.example"}).status_code == 401
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("name", ["flask", "django"])
def test_header_script_name_moves_no_checked_path(name: str) -> None:
    with behind_gunicorn(name) as site:
        for target, prefix in ((MOVED, "/inner"), ("/calendar/work", ""), (MOVED, "/inner/")):
            answer = site.raw("GET", target, [*site.signed(), ("SCRIPT_NAME", prefix)])
            if target == MOVED:
                said = refused(answer, 400, "invalid_request")
                assert "SCRIPT_NAME" in said["error_description"]
            else:
                # It moved nothing.
                assert (answer.status_code, SECRET in answer.text) == (200, True)
        [asked] = site.registry.asked
        assert asked["url"] == f"{AUDIENCE}/calendar/work"


@pytest.mark.parametrize("name", ["flask", "django"])
def test_without_forwarder_headers_gunicorn_drops_script_name(name: str) -> None:
    with behind_gunicorn(name, "--forwarder-headers", "") as site:
        answer = site.raw("GET", MOVED, [*site.signed(), ("SCRIPT_NAME", "/inner")])
        assert answer.status_code == 404
        [asked] = site.registry.asked
        assert asked["url"] == f"{AUDIENCE}{MOVED}"
        assert "action" not in asked


@pytest.mark.parametrize("name", ["flask", "django"])
def test_configured_prefix_may_come_in_the_header(name: str) -> None:
    with behind_gunicorn(name, prefix="/inner") as site:
        answer = site.raw("GET", MOVED, [*site.signed(), ("SCRIPT_NAME", "/inner")])
        assert (answer.status_code, SECRET in answer.text) == (200, True)
        [asked] = site.registry.asked
        assert asked["url"] == f"{AUDIENCE}{MOVED}"
        assert asked["action"]["resource"] == "calendar/work"
        refused(
            site.raw("GET", "/calendar/work", [*site.signed(), ("SCRIPT_NAME", "")]),
            400,
            "invalid_request",
        )


def test_forward_auth_reads_the_path_as_received(tmp_path: Path) -> None:
    header, file = "SCRIPT_NAME", tmp_path / "agentauth.toml"
    with behind_gunicorn("forward_auth", file=file) as site:
        answer = site.raw("GET", "/calendar/work", [*site.signed(), (header, "/calendar")])
        assert answer.status_code == 200
        [asked] = site.registry.asked
        assert asked["url"] == f"{AUDIENCE}/calendar/work"
        assert asked["action"]["resource"] == "calendar/work"
        assert site.raw("GET", "/calendar/x", [*site.signed(), (header, "/y")]).status_code == 500
    with behind_gunicorn("forward_auth", "--forwarder-headers", "", file=file) as site:
        assert site.raw("GET", "/calendar/x", [*site.signed(), (header, "/y")]).status_code == 200
