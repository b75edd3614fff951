"""A flooded web server refuses outsiders before Django and admits authenticated callers (SA-10)."""

import json
import threading
from collections.abc import Iterator
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import DatabaseError
from django.test import Client
from pytest_django import Settings

from agentauth import flood_filter, http_errors
from agentauth.flood_filter import Judged, PreauthFilter, Verdict
from agentauth.observability import metrics
from agentauth.protocol.errors import TemporarilyUnavailableError
from agentauth.raw_request_credentials import Call, read_call
from audit.log.refusal_counts import Batches
from audit.models import Event
from kms.row_seals import DEMAND
from registry import caller_limits
from registry.caller_limits import ADDRESS, CREDENTIALS, ENTRY, REGISTRATIONS, STRANGERS
from registry.models import Human, ServiceProvider
from registry.services.agents import revoke_agent
from registry.tests.cast import TESTER, AgentClient, basic, enrolled
from tests.contract.scenarios import one_call_a_minute

pytestmark = pytest.mark.django_db

OWN, TOKENS = "/v1/agents/me", "/v1/tokens"
PEER = ("203.0.113.7", 1)
ALLOWED, REFUSED, WAITS = Verdict.DJANGO, Verdict.REFUSED, Verdict.WAITS


@pytest.fixture(autouse=True)
def _many_strangers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The outsiders' common limit is used up. One event of refusals an hour."""
    monkeypatch.setattr(http_errors, "_batches", Batches(seconds=3600))
    with one_call_a_minute():
        caller_limits.take(STRANGERS, CREDENTIALS)
        yield


@pytest.fixture
def judging() -> PreauthFilter:
    """Without its thread: each test does that thread's work."""
    made = PreauthFilter(lambda _: None)
    made._thread = threading.current_thread()
    return made


def request(line: str, *headers: str, body: bytes = b"") -> tuple[bytearray, int, int]:
    """A request as it arrives, and where its head and its body end."""
    lines = [f"{line} HTTP/1.1", "Host: localhost:8000", *headers, f"Content-Length: {len(body)}"]
    head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
    return bytearray(head + body), len(head), len(head) + len(body)


def call(line: str, *headers: str, body: bytes = b"", peer: object = PEER) -> Call:
    found = read_call(*request(line, *headers, body=body), peer)
    assert found is not None
    return found


def own(client: AgentClient, path: str = OWN, **proof: Any) -> Call:
    return call(f"GET {path}", f"DPoP: {client.proof('GET', OWN, **proof)}")


def verdict_of(judging: PreauthFilter, line: str, *headers: str, peer: object = PEER) -> Verdict:
    data, head, end = request(line, *headers)
    if not judging.concern(data):
        return ALLOWED
    return judging.judge("connection", data, head, end, peer=peer).verdict


def guess(provider: ServiceProvider, secret: str) -> Call:
    return call("POST /v1/revoke", f"Authorization: {basic(provider, secret)['Authorization']}")


def test_SA_10_while_there_are_few_strangers_django_takes_all(judging: PreauthFilter) -> None:
    caller_limits.limiter.cache_clear()
    data, head, end = request("GET /v1/agents/me", "DPoP: x")
    assert not judging.concern(data)
    assert judging.judge("connection", data, head, end, peer=PEER).verdict is ALLOWED


def test_SA_10_strangers_stay_out_for_ten_seconds_more(
    judging: PreauthFilter, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 50.0
    monkeypatch.setattr(flood_filter, "time", SimpleNamespace(monotonic=lambda: now))
    assert verdict_of(judging, "GET /v1/agents/me", "DPoP: x") is WAITS
    caller_limits.limiter.cache_clear()
    for now, expected in ((59.9, WAITS), (60.0, ALLOWED)):  # noqa: B007 — the clock reads it
        assert verdict_of(judging, "GET /v1/agents/me", "DPoP: x") is expected


def test_SA_10_of_many_strangers_each_credential_is_looked_up(judging: PreauthFilter) -> None:
    assert judging.concern(request("GET /v1/agents/me")[0])
    assert verdict_of(judging, "GET /v1/agents/me", "DPoP: x") is WAITS
    assert verdict_of(judging, "GET http://localhost:8000/v1/agents/me?a=b", "dpop:x") is WAITS
    assert verdict_of(judging, "POST /v1/revoke", "AUTHORIZATION: Basic eDp5") is WAITS
    # No credentials: counted by address only, as pages are.
    assert verdict_of(judging, "GET /v1/agents/me") is ALLOWED
    assert verdict_of(judging, "GET /sign-in/", "DPoP: x") is ALLOWED


def test_SA_10_keys_of_agents_go_on_and_all_other_keys_are_refused(
    judging: PreauthFilter, agent: AgentClient
) -> None:
    asked = [
        own(agent),
        own(AgentClient()),
        own(AgentClient("ES256")),
        call("GET /v1/agents/me", "DPoP: x"),
    ]
    assert judging.look_up(asked) == [ALLOWED, REFUSED, REFUSED, REFUSED]


def test_SA_10_many_credentials_are_two_queries(
    judging: PreauthFilter,
    agent: AgentClient,
    provider_and_secret: tuple[ServiceProvider, str],
    django_assert_num_queries: Any,
) -> None:
    provider, secret = provider_and_secret
    asked = [own(agent), guess(provider, secret)]
    asked += [own(AgentClient()) for _ in range(20)] + [
        guess(provider, f"no {n}") for n in range(20)
    ]
    # Each process asks this once.
    DEMAND.holds()
    with django_assert_num_queries(2):
        assert judging.look_up(asked) == [ALLOWED, ALLOWED, *[REFUSED] * 40]


@pytest.mark.parametrize(
    "changes",
    [{"method": "POST"}, {"url": "http://localhost:8000/v1/tokens"}, {"iat": 1}, {"body": b"{}"}],
)
def test_SA_10_an_agents_proof_of_another_request_is_refused(
    judging: PreauthFilter, agent: AgentClient, changes: dict[str, Any]
) -> None:
    # With a body, which the proof covers.
    body = b"" if "body" not in changes else b"{ }"
    made = agent.proof("GET", OWN, **changes)
    asked = call("GET /v1/agents/me", f"DPoP: {made}", body=body)
    assert judging.look_up([asked]) == [REFUSED]


def test_SA_10_who_knows_an_agents_public_key_is_refused(
    judging: PreauthFilter, agent: AgentClient
) -> None:
    header, claims, _ = agent.proof("GET", OWN).split(".")
    signature = AgentClient().proof("GET", OWN).rpartition(".")[2]
    forged = f"DPoP: {header}.{claims}.{signature}"
    assert judging.look_up([call("GET /v1/agents/me", forged)]) == [REFUSED]
    assert judging.look_up([own(agent)]) == [ALLOWED]
    # The key is known by now, so it is not looked up.
    assert verdict_of(judging, "GET /v1/agents/me", forged) is REFUSED
    assert verdict_of(judging, "GET /v1/agents/me", f"DPoP: {agent.proof('GET', OWN)}") is ALLOWED


def test_SA_10_what_held_is_looked_up_again_after_a_minute(
    judging: PreauthFilter,
    agent: AgentClient,
    provider_and_secret: tuple[ServiceProvider, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 50.0
    monkeypatch.setattr(flood_filter, "time", SimpleNamespace(monotonic=lambda: now))
    lines = (
        f"DPoP: {agent.proof('GET', OWN)}",
        f"Authorization: {basic(*provider_and_secret)['Authorization']}",
    )
    judging.look_up([call("GET /v1/agents/me", line) for line in lines])
    for now, expected in ((109.9, ALLOWED), (110.0, WAITS)):  # noqa: B007 — the clock reads it
        for line in lines:
            assert verdict_of(judging, "GET /v1/agents/me", line) is expected


def test_SA_10_what_is_known_is_bounded(
    judging: PreauthFilter,
    agent: AgentClient,
    bob: Human,
    now: datetime,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(flood_filter, "_MOST_KNOWN", 1)
    judging.look_up([own(agent), own(enrolled(bob, now=now))])
    assert len(judging._known) == 1


def test_SA_10_ended_keys_and_secrets_are_refused(
    judging: PreauthFilter,
    agent: AgentClient,
    provider_and_secret: tuple[ServiceProvider, str],
    now: datetime,
) -> None:
    provider, secret = provider_and_secret
    rotated = own(agent)
    assert agent.rotate().status_code == 200
    assert judging.look_up([rotated, own(agent)]) == [REFUSED, ALLOWED]
    revoke_agent(agent=agent.agent(), actor=TESTER, now=now)
    ServiceProvider.objects.update(status=ServiceProvider.Status.SUSPENDED)
    assert judging.look_up([own(agent), guess(provider, secret)]) == [REFUSED, REFUSED]


def test_SA_10_unclaimed_agent_uses_the_allowance_of_its_address(judging: PreauthFilter) -> None:
    stranger = AgentClient()
    assert stranger.register().status_code == 201
    assert judging.look_up([own(stranger)]) == [ALLOWED]
    caller_limits.take(ADDRESS, PEER[0])
    assert judging.look_up([own(stranger)]) == [REFUSED]
    # So it is looked up each time.
    assert judging._known == {}


def test_SA_10_an_agents_private_key_still_comes_to_django_to_be_barred(
    judging: PreauthFilter, agent: AgentClient
) -> None:
    shown = [
        call("GET /v1/agents/me", f"DPoP: {each.disclosing('dpop+jwt')}")
        for each in (agent, AgentClient())
    ]
    assert judging.look_up(shown) == [ALLOWED, REFUSED]


@pytest.mark.parametrize("name", ["DPoP", "Authorization"])
def test_SA_10_two_lines_of_credentials_are_none(
    judging: PreauthFilter,
    agent: AgentClient,
    provider_and_secret: tuple[ServiceProvider, str],
    name: str,
) -> None:
    good = (
        agent.proof("GET", OWN) if name == "DPoP" else basic(*provider_and_secret)["Authorization"]
    )
    assert judging.look_up([call("GET /v1/agents/me", f"{name}: {good}")]) == [ALLOWED]
    assert judging.look_up([call("GET /v1/agents/me", *[f"{name}: {good}"] * 2)]) == [REFUSED]


def test_SA_10_a_registration_is_let_in_by_its_own_allowances(judging: PreauthFilter) -> None:
    line = "POST /v1/agents"
    # Wrong credentials do not block registration.
    assert verdict_of(judging, line) is ALLOWED
    caller_limits.take(ENTRY, PEER[0])
    assert verdict_of(judging, line) is REFUSED
    assert verdict_of(judging, line, peer=("203.0.113.8", 1)) is ALLOWED
    caller_limits.take(STRANGERS, REGISTRATIONS)
    assert verdict_of(judging, line, peer=("203.0.113.8", 1)) is REFUSED


def test_SA_10_while_there_are_few_guesses_registrations_are_judged(judging: PreauthFilter) -> None:
    caller_limits.limiter.cache_clear()
    assert verdict_of(judging, "POST /v1/agents") is ALLOWED
    caller_limits.take(STRANGERS, REGISTRATIONS)
    assert verdict_of(judging, "POST /v1/agents") is REFUSED
    assert verdict_of(judging, "POST http://localhost:8000/v1/agents?a=b") is REFUSED


def test_SA_10_addresses_are_those_that_our_proxies_name(
    judging: PreauthFilter, settings: Settings
) -> None:
    settings.TRUSTED_PROXIES = 1
    caller_limits.take(ENTRY, "198.51.100.9")
    assert verdict_of(judging, "POST /v1/agents", "X-Forwarded-For: 198.51.100.9") is REFUSED
    two = "X-Forwarded-For: 198.51.100.9", "X-Forwarded-For: 198.51.100.10"
    assert verdict_of(judging, "POST /v1/agents", *two) is ALLOWED


def test_SA_10_who_is_refused_is_counted_in_log_and_metrics(
    judging: PreauthFilter, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = metrics.ERRORS.labels("rate_limited", "")._value
    before = told.get()
    judging.look_up([own(AgentClient())])
    judging.write_down()
    judging.look_up([own(AgentClient()) for _ in range(4)])
    judging.look_up([call("BREW /v1/made/up", "DPoP: x")])
    judging.look_up([call("GET /v1/audit/events", "DPoP: x")])
    judging.write_down()
    assert told.get() == before + 7
    monkeypatch.setattr(http_errors._batches, "_next_at", {})
    judging.look_up([own(AgentClient())])
    judging.write_down()
    events = Event.objects.filter(reason="rate_limited").order_by("id")
    said = [(event.data["route"], event.data.get("count", 1)) for event in events]
    assert said == [
        ("GET v1/agents/me", 1),
        ("other ", 1),
        ("GET v1/audit/events", 1),
        ("GET v1/agents/me", 5),
    ]


def test_SA_10_refusals_that_cannot_be_recorded_are_recorded_later(
    judging: PreauthFilter, monkeypatch: pytest.MonkeyPatch
) -> None:
    judging.look_up([own(AgentClient())])
    with monkeypatch.context() as patch:
        patch.setattr("verifier.services.replay_cache_lease.Lease.halt", _away)
        judging.write_down()
    assert not Event.objects.filter(reason="rate_limited").exists()
    judging.write_down()
    assert Event.objects.filter(reason="rate_limited").count() == 1


def _away(*_: object) -> Any:
    raise TemporarilyUnavailableError


def test_SA_10_waiting_callers_get_503_without_a_database(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Judged] = []
    judging = PreauthFilter(heard.extend)

    def away(*_: object) -> Any:
        raise DatabaseError

    monkeypatch.setattr(flood_filter, "callers_with", away)
    judging._waiting.append(("connection", own(AgentClient())))
    judging._judge_waiting()
    [judged] = heard
    assert judged.is_refused
    assert judged.answer(keeps=True).startswith(b"HTTP/1.1 503 Service Unavailable\r\n")


@pytest.mark.parametrize("keeps", [True, False])
def test_SA_10_a_refusal_is_the_one_that_django_gives(keeps: bool) -> None:
    for _ in range(2):
        by_django = Client(REMOTE_ADDR="203.0.113.9").get(OWN, headers={"DPoP": "x"})
    asked = own(AgentClient())
    head, _, body = Judged("", asked, REFUSED).answer(keeps=keeps).decode().partition("\r\n\r\n")
    status, *lines = head.split("\r\n")
    sent = dict(line.split(": ", 1) for line in lines)
    assert status == "HTTP/1.1 429 Too Many Requests"
    assert sent.pop("Connection") == ("keep-alive" if keeps else "close")
    assert sent.pop("Date")
    assert len(sent.pop("X-Request-Id")) == len(by_django["X-Request-Id"])
    expected = dict(by_django.items())
    expected.pop("X-Request-Id")
    assert {n.lower(): v for n, v in sent.items()} == {
        n.lower(): v for n, v in expected.items() if n.lower() not in {"vary", "allow"}
    } | {"vary": sent.get("Vary")}
    assert json.loads(body) == by_django.json()


def test_SA_10_the_answer_to_head_has_no_body() -> None:
    asked = call("HEAD /v1/agents/me", "DPoP: x")
    assert Judged("", asked, REFUSED).answer(keeps=True).endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("line", "headers", "keeps"),
    [
        ("GET /v1/agents/me HTTP/1.1", [], True),
        ("GET /v1/agents/me HTTP/1.1", ["Connection: close"], False),
        ("GET /v1/agents/me HTTP/1.0", [], False),
    ],
)
def test_SA_10_a_connection_is_kept_where_the_client_keeps_it(
    line: str, headers: list[str], keeps: bool
) -> None:
    head = ("\r\n".join([line, "DPoP: x", *headers]) + "\r\n\r\n").encode()
    found = read_call(bytearray(head), len(head), len(head), PEER)
    assert found is not None
    assert found.keeps is keeps
