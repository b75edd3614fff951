"""SA-15: scrapers and balancers probe single processes by address, and cause no events."""

import logging
import socket
from collections.abc import Iterator
from datetime import datetime
from http.client import HTTPConnection
from typing import Any

import pytest
from django.test import Client
from prometheus_client import REGISTRY
from pytest_django.fixtures import Settings

from agentauth.middleware import ANY_HOST_PATHS
from agentauth.observability import health, metrics_page, ops_listener
from audit.models import Event
from registry.services.settings_agreement import record_settings
from registry.tests.cast import TESTER
from tests.postgres import free_port

pytestmark = pytest.mark.django_db
TOKEN = "only-the-collector-knows"
HOSTS = ["10.0.0.7:8000", "[fd00::7]:8000", "evil.example", "a b", ""]


@pytest.fixture
def production(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(health, "_readiness", health.Readiness())
    settings.DEVELOPMENT = False
    settings.ALLOWED_HOSTS = ["registry.example.com"]
    settings.METRICS_TOKEN = TOKEN
    # A scraper inside the network uses http.
    settings.SECURE_SSL_REDIRECT = True
    return settings


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("path", sorted(ANY_HOST_PATHS))
def test_SA_15_probes_and_scrapes_answer_under_any_host(
    path: str, host: str, token_key: None, production: Settings
) -> None:
    before = Event.objects.count()
    answer = Client().get(path, headers={"Host": host, "Authorization": f"Bearer {TOKEN}"})
    # It is not ready without recorded settings; that counts as an answer too.
    is_answer = (
        "checks" in answer.json()
        if path in {"/health/ready", "/health/startup"}
        else answer.status_code == 200
    )
    assert is_answer, answer.content
    assert Event.objects.count() == before
    # No cookie may be set for the host name that was asked for.
    assert answer.cookies == {}
    assert "Location" not in answer
    assert "evil.example" not in answer.content.decode()


@pytest.mark.parametrize("host", HOSTS)
def test_SA_15_a_refused_scrape_is_counted_and_writes_no_event(
    host: str,
    production: Settings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(metrics_page, "_said_at", -metrics_page._SAID_EVERY)

    def counted() -> float:
        return (
            REGISTRY.get_sample_value(
                "agentauth_errors_total", {"error": "not_found", "reason": ""}
            )
            or 0
        )

    before = counted()
    with caplog.at_level(logging.WARNING, "agentauth.observability.metrics_page"):
        for wrong in ("", "Bearer wrong", "Basic x"):
            answer = Client().get("/metrics", headers={"Host": host, "Authorization": wrong})
            assert (answer.status_code, answer.json()["error"]) == (404, "not_found")
    assert counted() == before + 3
    assert not Event.objects.exists()
    # One line a minute, however many there are.
    assert [record.name for record in caplog.records] == ["agentauth.observability.metrics_page"]


def test_SA_15_a_foreign_host_is_refused_at_every_other_address(
    production: Settings, now: datetime
) -> None:
    # A process that may not act cannot record a refusal, and so answers none.
    production.SUBJECT_KEYS = {"1": bytes(32)}
    record_settings(actor=TESTER, now=now)
    for path in ("/", "/health/", "/health/live/", "/metrics/", "/v1/verify"):
        assert Client().get(path, headers={"Host": "10.0.0.7:8000"}, secure=True).status_code == 400


def test_in_development_a_page_under_another_name_reads_no_metrics() -> None:
    """DNS rebinding: a browser on this machine asks by a name that now resolves here."""
    assert Client().get("/metrics").status_code == 200
    assert Client().get("/metrics", headers={"Host": "evil.example"}).status_code == 404


@pytest.fixture
def listening(settings: Settings) -> Iterator[int]:
    """The port of a listener in this process."""
    settings.OPERATIONS_BIND = f"127.0.0.1:{free_port()}"
    listener = ops_listener.listen()
    assert listener
    yield listener.server_address[1]
    listener.shutdown()
    listener.server_close()


def ask(port: int, method: str, path: str, **headers: str) -> Any:
    connection = HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read(), dict(answer.getheaders())
    finally:
        connection.close()


def test_the_listener_serves_probes_and_metrics_and_nothing_else(
    listening: int, settings: Settings
) -> None:
    settings.METRICS_TOKEN = TOKEN
    status, body, headers = ask(listening, "GET", "/health/live", Host="evil.example")
    assert (status, body) == (200, b'{"status": "ok"}')
    assert headers["Content-Type"] == "application/json"
    assert ask(listening, "HEAD", "/health/live")[:2] == (200, b"")
    assert ask(listening, "GET", "/metrics", Authorization="Bearer wrong")[0] == 404
    for method, path in (
        ("GET", "/"),
        ("GET", "/v1/agents/me"),
        ("GET", "/admin/"),
        ("GET", "/health/live/x"),
    ):
        assert ask(listening, method, path)[:2] == (404, b"")
    for method in ("POST", "PUT", "DELETE", "TRACE"):
        assert ask(listening, method, "/health/live")[0] in {405, 501}


def test_the_listener_repeats_nothing_of_a_malformed_request(listening: int) -> None:
    for sent in (
        b"<planted> \r\n\r\n",
        b"GET /<planted> HTTP/9.9\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\n: x\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", listening), timeout=20) as line:
            line.sendall(sent)
            line.shutdown(socket.SHUT_WR)
            said = b"".join(iter(lambda: line.recv(4096), b""))
        assert b"planted" not in said
        assert b"Python" not in said


def test_the_listener_keeps_so_many_connections_and_no_more(
    listening: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    idle = [socket.create_connection(("127.0.0.1", listening), timeout=20) for _ in range(16)]
    try:
        with socket.create_connection(("127.0.0.1", listening), timeout=20) as one_more:
            assert one_more.recv(1) == b""
    finally:
        for line in idle:
            line.close()


@pytest.mark.parametrize("bind", ["nowhere", "127.0.0.1:x", "10.255.255.1:9000", ":9000"])
def test_a_listener_that_cannot_be_stops_the_start_and_names_the_setting(
    bind: str, settings: Settings
) -> None:
    settings.OPERATIONS_BIND = bind
    with pytest.raises(SystemExit, match="OPERATIONS_BIND"):
        ops_listener.listen()
