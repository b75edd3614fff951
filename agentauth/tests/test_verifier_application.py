"""The verifier's own process around its endpoint: what waits for what."""

import asyncio
import json
import threading
from typing import Any, cast

import pytest
from django.core.handlers.wsgi import WSGIRequest
from pytest_django.fixtures import Settings

from agentauth.observability import metrics
from agentauth.observability.metrics_buffer import Tally
from agentauth.protocol.errors import InvalidStateError, TemporarilyUnavailableError
from agentauth.server import verifier_application
from agentauth.server.verifier_application import Delegate
from tests import endpoint_modes
from verifier.asgi_endpoint import Request, Response
from verifier.request_heads import Head
from verifier.services.state_cache import StateCache


class _Tally:
    def flush(self) -> None:
        pass


def asked(path: bytes) -> Request:
    scope = endpoint_modes.scope(path.decode(), "", [], method="GET")
    return Request(
        scope,
        Head({}, reads_body=True, authorization=None, credentials=None, digest=b"", key_at=None),
        b"",
        "",
    )


def test_OG_17_whether_a_process_lives_is_answered_beside_all_that_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The database hangs, and so does everything that uses it, readiness too."""
    go = threading.Event()

    def answered(scope: Any, _body: bytes) -> Response:
        if scope["raw_path"] != b"/health/live":
            go.wait(30)
        return Response(200, b"")

    monkeypatch.setattr(verifier_application, "answered_by_django", answered)

    async def work() -> None:
        delegate = Delegate(cast("Tally", _Tally()), cast("StateCache", None))
        try:
            strangers = [asyncio.create_task(delegate(asked(b"/v1/verify"))) for _ in range(64)]
            probes = [asyncio.create_task(delegate(asked(b"/health/ready"))) for _ in range(8)]
            await asyncio.sleep(0)
            with pytest.raises(TemporarilyUnavailableError):
                await delegate(asked(b"/v1/verify"))
            alive = await asyncio.wait_for(delegate(asked(b"/health/live")), 10)
            assert alive.status == 200
            assert not any(each.done() for each in (*strangers, *probes))
            go.set()
            assert {each.status for each in await asyncio.gather(*strangers, *probes)} == {200}
        finally:
            go.set()
            await asyncio.to_thread(delegate.stop)

    asyncio.run(work())


def test_repeated_failure_answer_is_unchanged_and_counted_each_time() -> None:
    def told(**more: Any) -> tuple[int, Any, dict[bytes, bytes]]:
        answer = verifier_application.error_response(TemporarilyUnavailableError("Later.", **more))
        return answer.status, json.loads(answer.body), dict(answer.headers)

    plain = {"error": "temporarily_unavailable", "error_description": "Later."}
    before = counted()
    for _ in range(2):
        assert told() == (503, plain, {b"retry-after": b"1"})
        assert told(retry_after=7) == (503, plain | {"retry_after": 7}, {b"retry-after": b"7"})
        assert told(reason="busy") == (503, plain | {"reason": "busy"}, {b"retry-after": b"1"})
    assert counted() - before == 4


def test_AU_27_production_verifier_refuses_an_overprivileged_role(
    monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    beyond = ["UPDATE on registry_human", "a", "b", "c"]
    monkeypatch.setattr("agentauth.startup_checks.is_database_ahead", lambda: False)
    monkeypatch.setattr("agentauth.startup_checks.beyond_verifier", lambda **_: beyond)
    settings.DEVELOPMENT = True
    verifier_application.check_role()
    settings.DEVELOPMENT = False
    with pytest.raises(
        InvalidStateError, match=r"UPDATE on registry_human, a, b and more.*grant_verifier_role"
    ):
        asyncio.run(verifier_application.start())
    beyond.clear()
    verifier_application.check_role()


@pytest.mark.parametrize("proxy_header", [None, ("HTTP_X_FORWARDED_PROTO", "https")])
def test_SA_12_standing_headers_are_those_of_an_answer_over_https(
    settings: Settings, proxy_header: tuple[str, str] | None
) -> None:
    settings.SECURE_SSL_REDIRECT, settings.SECURE_HSTS_SECONDS = True, 31_536_000
    settings.SECURE_HSTS_INCLUDE_SUBDOMAINS = settings.SECURE_HSTS_PRELOAD = True
    settings.SECURE_PROXY_SSL_HEADER = proxy_header
    headers = dict(verifier_application.standing_headers())
    assert headers[b"content-type"] == b"application/json"
    assert headers[b"strict-transport-security"] == b"max-age=31536000; includeSubDomains; preload"
    assert headers[b"x-content-type-options"] == b"nosniff"
    assert headers[b"cache-control"] == b"no-store"
    assert b"location" not in headers


def test_SA_12_an_answer_of_a_middleware_is_not_taken_for_the_view_s(
    monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    settings.SECURE_SSL_REDIRECT = True
    monkeypatch.setattr(WSGIRequest, "_get_scheme", lambda _: "http")
    with pytest.raises(RuntimeError, match="with status 301"):
        verifier_application.standing_headers()


def counted() -> float:
    return metrics.ERRORS.labels("temporarily_unavailable", "")._value.get()  # type: ignore[no-any-return]
