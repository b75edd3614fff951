"""A server with several processes reports on itself: one /metrics, readiness, one log line a
request.

Each server belongs to its test, which counts its series, stops it, or changes its logging.
"""

import json
import re
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.actors import scene
from tests.live import LiveRegistry
from tests.otlp_receiver import collector
from tests.time_limits import HANGS_SECONDS, within
from tests.waiting import until

pytestmark = pytest.mark.flow

READ: dict[str, Any] = {"type": "read", "resource": "calendar"}


def sample(page: str, name: str, **labels: str) -> float:
    """The value of one series, labels in any order; 0 if it does not exist."""
    for line in page.splitlines():
        found = re.fullmatch(rf"{name}(?:\{{(.*)\}})? (\S+)", line)
        if found and dict(re.findall(r'(\w+)="([^"]*)"', found[1] or "")) == labels:
            return float(found[2])
    return 0.0


def answered(registry: LiveRegistry, path: str, **headers: str) -> httpx.Response:
    # A new connection each time, so that any of the processes may answer.
    return httpx.get(f"{registry.url}{path}", headers=headers, timeout=HANGS_SECONDS)


def test_each_process_serves_metrics_of_all_and_a_restart_resets_them(tmp_path: Path) -> None:
    registry = LiveRegistry(tmp_path, workers=3)
    registry.prepare()
    registry.start()
    try:
        place = scene(registry, capabilities=[READ], envelope={})
        token = place.token()
        for _ in range(4):
            assert place.ask(place.question(token, READ)).json()["valid"] is True
        assert place.ask(place.question("x", READ)).json()["valid"] is False
        for _ in range(30):
            answered(registry, "/nowhere")
        pages = [answered(registry, "/metrics").text for _ in range(6)]
        for page in pages:
            nowhere = {"method": "GET", "route": "none", "status": "404"}
            assert sample(page, "agentauth_http_request_seconds_count", **nowhere) == 30
            assert sample(page, "agentauth_errors_total", error="not_found", reason="") == 30
            yes = {"decision": "allowed", "error": "", "reason": ""}
            assert sample(page, "agentauth_decisions_total", **yes) == 4
            no = {"decision": "denied", "error": "invalid_token", "reason": "malformed"}
            assert sample(page, "agentauth_decisions_total", **no) == 1
            assert sample(page, "agentauth_events_total", kind="registry.token.issued") == 1
            assert sample(page, "agentauth_grants", state="approved") == 1
            for secret in (token, place.client_secret, place.agent_id, place.grant_id):
                assert secret not in page
        assert answered(registry, "/metrics", **{"X-Forwarded-For": "127.0.0.1"}).status_code == 200
        registry.stop()
        registry.start()
        page = answered(registry, "/metrics").text
        assert sample(page, "agentauth_errors_total", error="not_found", reason="") == 0
    finally:
        registry.stop()


def test_OG_17_a_server_that_was_not_ready_is_ready_without_a_restart(tmp_path: Path) -> None:
    registry = LiveRegistry(tmp_path, workers=2)
    registry.launch()
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                answer = answered(registry, "/health/ready")
                break
            except httpx.TransportError:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
        failing = {name for name, state in answer.json()["checks"].items() if state == "failing"}
        # It may not have found out yet whether it can write.
        assert failing - {"writable"} == {
            "migrations",
            "configuration",
            "history",
            "token_key",
            "audit_queue",
            "clock",
            "signing",
        }
        assert answered(registry, "/health/live").status_code == 200
        registry.prepare()

        def are_ready() -> bool:
            # Both processes: of so many calls at once, each gets some.
            with ThreadPoolExecutor(16) as pool:
                answers = pool.map(lambda _: answered(registry, "/health/ready"), range(32))
                return {answer.status_code for answer in answers} == {200}

        until(are_ready, "it does not heal", within(10))
    finally:
        registry.stop()


@pytest.mark.parametrize("as_json", [True, False])
def test_OG_25_request_id_is_ours_in_answer_and_log_never_the_clients(
    tmp_path: Path, as_json: bool
) -> None:
    log = {"LOG_FORMAT": "json" if as_json else "text", "LOG_LEVEL": "INFO"}
    with collector() as receiver:
        # The first registry is traced as well: its process, a fork, exports before it ends.
        traced = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url} if as_json else {}
        registry = LiveRegistry(tmp_path, workers=1, env=log | traced)
        registry.prepare()
        ids = ids_answered(registry)
    written = registry.log.read_text()
    assert len(set(ids)) == 5
    assert "second-one" not in written
    assert "script" not in written
    assert "xxxxxxxx" not in written
    assert all(one in written for one in ids)
    if as_json:
        lines = [json.loads(line) for line in written.splitlines()]
        requests = [line for line in lines if line["logger"] == "agentauth.requests"]
        asked = [line for line in requests if line["route"] == "/v1/agents/me"]
        assert [line["request_id"] for line in asked] == ids
        assert [str(uuid.UUID(line["trace_id"])) for line in asked] == ids
        spans = [span for span in receiver.spans if span.name == "GET /v1/agents/me"]
        assert [str(uuid.UUID(bytes=span.trace_id)) for span in spans] == ids


def ids_answered(registry: LiveRegistry) -> list[str]:
    """The ids of five refused requests, each of which brought one of its own; stops the server."""
    registry.start()
    try:
        ids = []
        for sent in [
            "a" * 64,
            "x" * 8000,
            "<script>",
            "id\tid",
            "01980000-0000-7000-8000-000000000000",
        ]:
            headers = [("X-Request-Id", sent), ("X-Request-Id", "second-one")]
            answer = httpx.get(
                f"{registry.url}/v1/agents/me", headers=headers, timeout=HANGS_SECONDS
            )
            assert answer.status_code == 401
            ids.append(answer.headers["X-Request-Id"])
            assert re.fullmatch(r"[0-9a-f-]{36}", ids[-1])
        return ids
    finally:
        registry.stop()
