"""How often a caller may call: fixed limits per caller, refused before anything is written."""

import base64
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
from django.db import OperationalError
from django.test import Client
from pytest_django import Settings

from agentauth.protocol.errors import RateLimitedError
from audit.log.refusal_counts import Batches
from audit.models import Event, RefusalCount
from registry import caller_limits
from registry.caller_limits import (
    ADDRESS,
    AGENT,
    ENTRY,
    HUMAN,
    SERVICE_PROVIDER,
    STRANGERS,
    Limit,
    Limiter,
)
from registry.models import Human, ServiceProvider, SpentProof
from registry.tests.cast import AgentClient, basic, enrolled

pytestmark = pytest.mark.django_db

VERIFY = {"token": "x", "proof": "x", "method": "GET", "url": "http://127.0.0.1:8001/v1"}


@pytest.fixture
def few(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every caller has three calls at once, then one a minute."""
    settings.RATE_LIMITED = True
    settings.WEB_CONCURRENCY = 1
    sorts = (ADDRESS, ENTRY, STRANGERS, AGENT, HUMAN, SERVICE_PROVIDER)
    monkeypatch.setattr(caller_limits, "limits", lambda: {sort: Limit(1, 3) for sort in sorts})
    monkeypatch.setattr("agentauth.http_errors._batches", Batches(seconds=1))
    caller_limits.limiter.cache_clear()
    yield
    caller_limits.limiter.cache_clear()


def test_a_burst_then_the_rate() -> None:
    limiter = Limiter(Limit(per_minute=60, burst=3), share=1)
    assert [limiter.take("a", now=10.0) for _ in range(4)] == [0, 0, 0, 1.0]
    assert limiter.take("a", now=10.5) == 0.5
    assert [limiter.take("a", now=11.0), limiter.take("a", now=11.0)] == [0, 1.0]
    assert [limiter.take("a", now=99.0) for _ in range(4)] == [0, 0, 0, 1.0]


def test_what_is_refused_takes_nothing_and_asking_takes_nothing() -> None:
    limiter = Limiter(Limit(per_minute=60, burst=1), share=1)
    assert limiter.take("a", now=0.0) == 0
    for _ in range(100):
        assert limiter.take("a", now=0.5) == limiter.wait("a", now=0.5) == 0.5
    assert limiter.wait("a", now=1.0) == limiter.take("a", now=1.0) == 0


def test_what_is_charged_is_waited_for_and_never_refused() -> None:
    limiter = Limiter(Limit(per_minute=60, burst=3), share=1)
    assert limiter.take("a", now=0.0) == 0
    limiter.charge("a", 9, now=0.0)
    assert limiter.take("a", now=0.0) == 8.0
    assert [limiter.take("a", now=8.0), limiter.take("a", now=8.0)] == [0, 1.0]
    assert limiter.take("b", now=0.0) == 0


def test_each_process_gives_out_its_share() -> None:
    limiter = Limiter(Limit(per_minute=60, burst=8), share=4)
    assert [limiter.take("a", now=0.0) for _ in range(3)] == [0, 0, 4.0]


def test_DJ_25_callers_are_remembered_within_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caller_limits, "MAX_REMEMBERED", 10)
    limiter = Limiter(Limit(per_minute=1, burst=1), share=1)
    for number in range(1000):
        limiter.take(str(number), now=0.0)
    assert len(limiter._whole_at) == 10
    # The latest callers are remembered; the oldest start afresh.
    assert limiter.wait("999", now=0.0) > 0
    assert limiter.wait("0", now=0.0) == 0


def test_DJ_25_a_caller_that_called_again_is_remembered_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(caller_limits, "MAX_REMEMBERED", 2)
    limiter = Limiter(Limit(per_minute=1, burst=1), share=1)
    for caller in ("a", "b"):
        limiter.take(caller, now=0.0)
    limiter.charge("a", 1, now=0.0)
    limiter.take("c", now=0.0)
    assert limiter.wait("a", now=0.0) > 0
    assert limiter.wait("b", now=0.0) == 0


def refused(answer: Any) -> bool:
    if answer.status_code != 429:
        return False
    body = answer.json()
    assert body["error"] == "rate_limited"
    assert 1 <= body["retry_after"] <= 61
    assert answer["Retry-After"] == str(body["retry_after"])
    assert answer["Cache-Control"] == "no-store"
    return True


def test_DJ_25_agent_has_its_own_allowance_and_refusal_spends_no_proof(
    few: None, agent: AgentClient, bob: Human, now: datetime
) -> None:
    other = enrolled(bob, now=now)
    calls = [agent.call("GET", "/v1/agents/me") for _ in range(3)]
    assert [answer.status_code for answer in calls] == [200] * 3
    spent = SpentProof.objects.count()
    assert refused(agent.call("GET", "/v1/agents/me"))
    assert SpentProof.objects.count() == spent
    assert other.call("GET", "/v1/agents/me").status_code == 200
    event = Event.objects.get(reason="rate_limited")
    assert str(event.agent_id) == str(agent.agent().pk)


def test_DJ_25_another_s_replays_take_nothing_from_an_agent(few: None, agent: AgentClient) -> None:
    proof = agent.proof("GET", "/v1/agents/me", b"")
    answers = [Client().get("/v1/agents/me", headers={"DPoP": proof}) for _ in range(4)]
    assert [answer.status_code for answer in answers][:3] == [200, 401, 401]
    assert agent.call("GET", "/v1/agents/me").status_code == 200


def test_DJ_25_a_service_provider_has_its_own_allowance(
    few: None, provider_and_secret: tuple[ServiceProvider, str]
) -> None:
    def ask() -> Any:
        return Client().post(
            "/v1/verify",
            VERIFY,
            content_type="application/json",
            headers=basic(*provider_and_secret),
        )

    assert [ask().status_code for _ in range(3)] == [200] * 3
    assert refused(ask())
    event = Event.objects.get(reason="rate_limited")
    assert event.service_provider_id == provider_and_secret[0].pk


def test_DJ_25_wrong_credentials_use_up_only_the_address_allowance(
    few: None, provider_and_secret: tuple[ServiceProvider, str], agent: AgentClient
) -> None:
    wrong = base64.b64encode(f"{provider_and_secret[0].pk}:wrong".encode()).decode()

    def guess() -> Any:
        return Client().post(
            "/v1/verify",
            VERIFY,
            content_type="application/json",
            headers={"Authorization": f"Basic {wrong}"},
        )

    assert [guess().status_code for _ in range(3)] == [401] * 3
    assert refused(guess())
    assert agent.call("GET", "/v1/agents/me").status_code == 200
    good = Client().post(
        "/v1/verify", VERIFY, content_type="application/json", headers=basic(*provider_and_secret)
    )
    assert good.status_code == 200


def test_DJ_25_one_address_s_refusals_are_another_s_business(few: None) -> None:
    def ask(address: str) -> Any:
        return Client(REMOTE_ADDR=address).get("/.well-known/agentauth")

    assert [ask("203.0.113.7").status_code for _ in range(3)] == [200] * 3
    assert refused(ask("203.0.113.7"))
    assert ask("203.0.113.8").status_code == 200
    assert [ask("2001:db8:1:2::1").status_code for _ in range(3)] == [200] * 3
    assert refused(ask("2001:db8:1:2:ffff::9"))
    assert ask("2001:db8:1:3::1").status_code == 200


def test_SA_10_guesses_from_many_addresses_share_an_allowance(
    few: None, provider_and_secret: tuple[ServiceProvider, str], agent: AgentClient
) -> None:
    def ask(address: str, secret: str) -> Any:
        return Client(REMOTE_ADDR=address).post(
            "/v1/verify",
            VERIFY,
            content_type="application/json",
            headers=basic(provider_and_secret[0], secret),
        )

    assert [ask(f"203.0.113.{number}", "wrong").status_code for number in range(3)] == [401] * 3
    assert refused(ask("203.0.113.9", "wrong"))
    assert refused(Client(REMOTE_ADDR="203.0.113.10").get("/v1/agents/me", headers={"DPoP": "x"}))
    # Authenticated callers and first-time callers have separate limits.
    assert ask("203.0.113.9", provider_and_secret[1]).status_code == 200
    assert agent.call("GET", "/v1/agents/me").status_code == 200
    assert AgentClient().register().status_code == 201


def test_SA_10_agent_with_an_old_nonce_uses_its_own_allowance(
    few: None, agent: AgentClient
) -> None:
    for number in range(4):
        Client(REMOTE_ADDR=f"203.0.113.{number}").get("/v1/agents/me", headers={"DPoP": "x"})
    told = [agent.call("GET", "/v1/agents/me", proof=old_nonce(agent)) for _ in range(4)]
    assert [answer.json()["error"] for answer in told[:3]] == ["use_dpop_nonce"] * 3
    assert told[0]["DPoP-Nonce"]
    # Its own calls use up its limit.
    assert refused(told[3])
    assert refused(AgentClient().call("GET", "/v1/agents/me"))


def old_nonce(agent: AgentClient) -> str:
    return agent.proof("GET", "/v1/agents/me", nonce="old")


def test_SA_10_registrations_from_many_addresses_share_an_allowance(
    few: None, agent: AgentClient
) -> None:
    def register(address: str) -> Any:
        client = Client(SERVER_NAME="localhost", SERVER_PORT="8000", REMOTE_ADDR=address)
        return AgentClient(client=client).register()

    assert [register(f"203.0.113.{number}").status_code for number in range(3)] == [201] * 3
    assert refused(register("203.0.113.9"))
    assert agent.call("GET", "/v1/agents/me").status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/v1/schema/", 200), ("OPTIONS", "/v1/agents", 405)]
)
def test_DJ_25_invented_credentials_give_no_allowance_on_open_routes(
    few: None, method: str, path: str, status: int
) -> None:
    def ask() -> Any:
        return Client().generic(method, path, headers={"DPoP": "x", "Authorization": "Basic eDp5"})

    assert [ask().status_code for _ in range(3)] == [status] * 3
    assert refused(ask())


def test_DJ_25_unclaimed_agents_share_the_allowance_of_their_address(
    few: None, agent: AgentClient
) -> None:
    strangers = [AgentClient() for _ in range(2)]
    assert [stranger.register().status_code for stranger in strangers] == [201] * 2
    calls = [strangers[number % 2].call("GET", "/v1/agents/me") for number in range(4)]
    assert [answer.status_code for answer in calls[:3]] == [200] * 3
    assert refused(calls[3])
    assert agent.call("GET", "/v1/agents/me").status_code == 200


def test_DJ_25_made_up_credentials_take_no_human_out_of_the_count(few: None, alice: Human) -> None:
    client = Client()
    client.force_login(alice)
    answers = [client.get("/v1/nowhere", headers={"DPoP": "x"}) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [404, 404, 404, 429]


@pytest.mark.parametrize("hops", [0, 1])
def test_DJ_25_forged_forwarded_address_gives_no_new_allowance(
    few: None, settings: Settings, hops: int
) -> None:
    settings.TRUSTED_PROXIES = hops

    def ask(claimed: str) -> Any:
        # A proxy of ours appends the true address on the right.
        said = f"{claimed}, 203.0.113.7" if hops else claimed
        return Client(REMOTE_ADDR="10.0.0.2").get(
            "/.well-known/agentauth", headers={"X-Forwarded-For": said}
        )

    assert [ask(f"198.51.100.{number}").status_code for number in range(3)] == [200] * 3
    assert refused(ask("198.51.100.77"))


@pytest.mark.parametrize(
    "path",
    [
        "/sign-in/finish",
        "/setup/unknown-code/options",
        "/recover/unknown-code/options",
        "/claim/unknown-secret/statement",
        "/v1/agents",
    ],
)
def test_DJ_25_beginnings_have_an_allowance_of_their_own(few: None, path: str) -> None:
    origin = {"Origin": "http://localhost:8000"}

    def begin() -> Any:
        return Client().post(path, "{}", content_type="application/json", headers=origin)

    assert not [begin() for _ in range(3) if refused(begin())][1:]
    assert refused(begin())
    # Reading has a separate limit from starting a ceremony.
    assert Client().get("/sign-in/").status_code == 200


def test_AP_10_a_human_who_guesses_ids_is_slowed_down(few: None, alice: Human) -> None:
    client = Client()
    client.force_login(alice)
    answers = [
        client.get(f"/approvals/01980000-0000-7000-8000-{number:012}/") for number in range(4)
    ]
    assert [answer.status_code for answer in answers] == [404, 404, 404, 429]
    assert Event.objects.filter(reason="rate_limited", human_id=alice.pk).count() == 1


def test_DJ_25_probes_are_never_refused(few: None, token_key: None) -> None:
    assert {Client().get(path).status_code for path in ["/health/live", "/health/ready"] * 9} == {
        200
    }


def test_DJ_25_U4_a_flood_is_few_writes_and_every_refusal_is_counted(few: None) -> None:
    for _ in range(3):
        Client().get("/.well-known/agentauth")
    began = time.monotonic()
    for _ in range(50):
        assert refused(Client().get("/.well-known/agentauth"))
    events = Event.objects.filter(reason="rate_limited")
    # One a second, however long the fifty calls take here.
    assert 1 <= events.count() <= 2 + (time.monotonic() - began)
    assert sum(RefusalCount.objects.values_list("count", flat=True)) == events.count()


def test_without_the_setting_nothing_is_counted(settings: Settings) -> None:
    settings.RATE_LIMITED = False
    for _ in range(5000):
        caller_limits.take(ENTRY, "203.0.113.7")
    settings.RATE_LIMITED = True
    caller_limits.take(ENTRY, "203.0.113.7")
    caller_limits.limiter.cache_clear()


def test_the_error_says_when_to_go_on(few: None) -> None:
    for _ in range(3):
        caller_limits.take(AGENT, "a")
    with pytest.raises(RateLimitedError) as caught:
        caller_limits.check(AGENT, "a")
    assert caught.value.fields["retry_after"] == 60


def test_RF_25_rate_limit_refuses_without_database_and_redis(
    few: None, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object, **__: object) -> None:
        raise OperationalError("connection refused")

    settings.REDIS_URL = "redis://127.0.0.1:1/0"
    monkeypatch.setattr("django.db.backends.utils.CursorWrapper.execute", away)
    client = Client(raise_request_exception=False)
    monkeypatch.setattr("agentauth.http_errors._batches", Batches(seconds=60))
    for _ in range(3):
        assert client.get("/.well-known/jwks.json").status_code == 503
    # The first refusal must be recorded, which fails without the database.
    assert client.get("/.well-known/jwks.json").status_code == 503
    for _ in range(3):
        assert refused(client.get("/.well-known/jwks.json"))
