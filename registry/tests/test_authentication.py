"""Which callers are let in: the table of docs/protocol.md section 0, and the proofs behind it."""

import base64
import json
import secrets
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote

import pytest
from django.db import connection, transaction
from django.test import Client

from audit.models import Event
from registry.models import Human, ServiceProvider, SpentProof
from registry.services.agents import resume_agent, suspend_agent
from registry.services.spent_proofs import spend_proof
from registry.tests.cast import TESTER, AgentClient, assert_refused, enrolled, pending
from tests.endpoints import OPERATIONS, address

pytestmark = pytest.mark.django_db
# The operations of agents alone, but for two where a bad proof is a bad request (400).
ROUTES = [
    (key.split(" ")[0], address(key.split(" ")[1], {}))
    for key, each in OPERATIONS.items()
    if each["security"] == [{"proof": []}]
    and "`invalid_dpop_proof`" in each["responses"]["401"]["description"]
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_OG_1_AP_35_without_a_proof_nothing_answers(method: str, path: str) -> None:
    response = AgentClient().call(method, path, proof=None)
    assert_refused(response, 401, "invalid_dpop_proof")
    assert (
        response["WWW-Authenticate"]
        == 'DPoP error="invalid_dpop_proof", algs="EdDSA Ed25519 ES256"'
    )


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_a_good_proof_by_an_unknown_key_is_an_unknown_client(method: str, path: str) -> None:
    answer = AgentClient().call(method, path)
    assert_refused(answer, 401, "invalid_client")
    assert answer["WWW-Authenticate"] == 'DPoP error="invalid_client", algs="EdDSA Ed25519 ES256"'
    # An unknown key writes nothing to the replay cache.
    assert not SpentProof.objects.exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"method": "POST"}, "method"),
        ({"url": "http://localhost:8000/v1/grants"}, "url"),
        ({"url": "https://localhost:8000/v1/agents/me"}, "url"),
        ({"url": "http://testserver/v1/agents/me"}, "url"),
        ({"iat": -61}, "iat"),
        ({"iat": +62}, "iat"),
        ({"access_token": "x"}, "ath"),
        ({"jti": "x" * 257}, "malformed"),
        ({"body": b"{}"}, "body"),
    ],
)
def test_a_proof_is_for_exactly_this_request(
    agent: AgentClient, changes: dict[str, Any], reason: str
) -> None:
    if "iat" in changes:
        changes = {"iat": int(datetime.now().timestamp()) + changes["iat"]}  # noqa: DTZ005 — seconds alone
    proof = agent.proof("GET", "/v1/agents/me", **changes)
    answer = assert_refused(
        agent.call("GET", "/v1/agents/me", proof=proof), 401, "invalid_dpop_proof"
    )
    assert answer["reason"] == reason


def test_a_proof_covers_the_body(agent: AgentClient, service_provider: ServiceProvider) -> None:
    body = json.dumps({"service_provider": "x", "capabilities": []}).encode()
    without = agent.proof("POST", "/v1/grants")
    assert (
        assert_refused(
            agent.call("POST", "/v1/grants", body, proof=without), 401, "invalid_dpop_proof"
        )["reason"]
        == "body"
    )
    other = agent.proof("POST", "/v1/grants", body + b" ")
    assert (
        assert_refused(
            agent.call("POST", "/v1/grants", body, proof=other), 401, "invalid_dpop_proof"
        )["reason"]
        == "body"
    )


def test_a_proof_is_used_once_even_by_a_call_that_is_refused(agent: AgentClient) -> None:
    proof = agent.proof("GET", "/v1/grants/unknown")
    assert_refused(agent.call("GET", "/v1/grants/unknown", proof=proof), 404, "not_found")
    answer = assert_refused(
        agent.call("GET", "/v1/grants/unknown", proof=proof), 401, "invalid_dpop_proof"
    )
    assert answer["reason"] == "replayed"


def test_the_same_jti_freshly_signed_is_a_replay(agent: AgentClient) -> None:
    for path, status in (("/v1/agents/me", 200), ("/v1/grants", 401)):
        response = agent.call("GET", path, proof=agent.proof("GET", path, jti="the-same"))
        assert response.status_code == status


def test_a_proof_is_remembered_longer_than_it_could_be_used(
    agent: AgentClient, now: datetime
) -> None:
    agent.call("GET", "/v1/agents/me")
    kept = SpentProof.objects.get().expires_at - now
    assert timedelta(seconds=64) <= kept <= timedelta(seconds=70)


def test_two_agents_may_use_the_same_jti(now: datetime) -> None:
    until, jti = now + timedelta(seconds=65), secrets.token_urlsafe()
    assert spend_proof(jkt="a", jti=jti, until=until)
    assert spend_proof(jkt="b", jti=jti, until=until)
    assert not spend_proof(jkt="a", jti=jti, until=until)


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_DN_7_async_commit_covers_only_the_proof_and_spends_it_for_all(
    now: datetime,
) -> None:
    def waiting() -> str:
        with connection.cursor() as cursor:
            cursor.execute("SHOW synchronous_commit")
            return str(cursor.fetchone()[0])

    until = now + timedelta(seconds=65)
    assert spend_proof(jkt="a", jti="1", until=until, waits=False)
    assert not spend_proof(jkt="a", jti="1", until=until, waits=False)
    assert not spend_proof(jkt="a", jti="1", until=until)
    assert waiting() == "on"
    with transaction.atomic():
        assert spend_proof(jkt="a", jti="2", until=until, waits=False)
        # This transaction's other writes reach the disk at its commit.
        assert waiting() == "on"


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("key", [None, "once"])
def test_DN_7_only_a_token_s_own_commit_lets_its_proof_wait_for_no_disk(
    agent: AgentClient, key: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[bool] = []

    def noted(*, waits: bool = True, **more: Any) -> bool:
        told.append(waits)
        return spend_proof(waits=waits, **more)

    monkeypatch.setattr("registry.authentication.spend_proof", noted)
    agent.call("POST", "/v1/tokens", {"grant_id": "x"}, key=key)
    agent.call("GET", "/v1/agents/me")
    assert told == [key is not None, True]


@pytest.mark.parametrize("header", ["", "x", "a,b", "a.b.c, a.b.c"])
def test_DJ_2_anything_but_one_proof_is_malformed(agent: AgentClient, header: str) -> None:
    response = agent.client.get("/v1/agents/me", headers={"DPoP": header})
    assert assert_refused(response, 401, "invalid_dpop_proof")["reason"] == "malformed"
    twice = ",".join([agent.proof("GET", "/v1/agents/me")] * 2)
    response = agent.client.get("/v1/agents/me", headers={"DPoP": twice})
    assert assert_refused(response, 401, "invalid_dpop_proof")["reason"] == "malformed"


def test_DJ_3_the_url_comes_from_settings_and_never_from_the_host(agent: AgentClient) -> None:
    proof = agent.proof("GET", "/v1/agents/me", url="http://127.0.0.1/v1/agents/me")
    response = agent.client.get("/v1/agents/me", headers={"DPoP": proof, "Host": "127.0.0.1"})
    assert_refused(response, 401, "invalid_dpop_proof")


def test_DP_100_nonce_the_server_never_issued_is_refused(agent: AgentClient) -> None:
    stale = agent.proof("GET", "/v1/agents/me", nonce="stale")
    assert_refused(agent.call("GET", "/v1/agents/me", proof=stale), 401, "use_dpop_nonce")
    body = b'{"grant_id": "x"}'
    stale = agent.proof("POST", "/v1/tokens", body, nonce="stale")
    assert_refused(
        agent.call("POST", "/v1/tokens", {"grant_id": "x"}, proof=stale), 400, "use_dpop_nonce"
    )


def test_a_mutation_takes_no_query_string(agent: AgentClient) -> None:
    assert_refused(agent.call("DELETE", "/v1/agents/me", query="?x=1"), 400, "invalid_request")
    assert agent.agent().status == "active"


def test_a_query_takes_no_unknown_parameter(agent: AgentClient) -> None:
    for query in (
        "?x=1",
        "?limit=0",
        "?limit=101",
        "?limit=1.0",
        "?limit=1&limit=2",
        "?after=1",
        "?limit=٣",
    ):
        assert_refused(agent.call("GET", "/v1/grants", query=query), 400, "invalid_request")
    for query in ("?wait=31", "?wait=-1", "?wait=x"):
        assert_refused(agent.call("GET", "/v1/grants/x", query=query), 400, "invalid_request")


def test_cookies_and_other_credentials_do_not_authenticate_agents(agent: AgentClient) -> None:
    proof = agent.proof("GET", "/v1/agents/me")
    both = {"DPoP": proof, "Authorization": "Basic eDp5"}
    assert_refused(agent.client.get("/v1/agents/me", headers=both), 400, "invalid_request")


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"null",
        b'{"a":1,"a":2}',
        b"{",
        b'\xef\xbb\xbf{"a":1}',
        b'{"a":NaN}',
        b'{"a":"\\u0000"}',
        b"[" * 50,
    ],
)
def test_DJ_8_bodies_are_read_strictly(agent: AgentClient, body: bytes) -> None:
    assert_refused(agent.call("POST", "/v1/grants", body), 400, "invalid_request")


def test_a_body_too_large_is_refused_before_it_is_read(agent: AgentClient) -> None:
    assert_refused(
        agent.call("POST", "/v1/grants", b" " * (64 * 1024 + 1)), 413, "request_too_large"
    )


def test_another_media_type_is_refused(agent: AgentClient) -> None:
    data = b"service_provider=x"
    response = agent.client.generic(
        "POST",
        "/v1/grants",
        data,
        content_type="text/plain",
        headers={"DPoP": agent.proof("POST", "/v1/grants", data)},
    )
    assert_refused(response, 415, "unsupported_media_type")


def test_a_suspended_agent_sees_but_changes_nothing_except_endings(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    grant = pending(agent, service_provider, now=now)
    suspend_agent(agent=agent.agent(), actor=TESTER, now=now)
    assert agent.call("GET", "/v1/agents/me").json()["status"] == "suspended"
    assert agent.call("GET", "/v1/service-providers/acme-calendar").status_code == 200
    assert agent.call("GET", f"/v1/grants/{grant.id}").status_code == 200
    assert_refused(agent.ask(service_provider), 403, "agent_inactive")
    assert agent.call("POST", f"/v1/grants/{grant.id}/withdraw", {}).status_code == 204
    assert agent.call("DELETE", "/v1/agents/me").status_code == 204


def test_a_resumed_agent_acts_again(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    suspend_agent(agent=agent.agent(), actor=TESTER, now=now)
    resume_agent(agent=agent.agent(), actor=TESTER, now=now)
    assert agent.ask(service_provider).status_code == 201


def test_AP_35_DJ_14_another_owners_grant_is_as_unknown_as_none(
    agent: AgentClient, bob: Human, service_provider: ServiceProvider, now: datetime
) -> None:
    grant = pending(agent, service_provider, now=now)
    stranger = enrolled(bob, now=now)
    unknown = "0192f1c8-0000-7000-8000-000000000001"
    for method, suffix in (("GET", ""), ("POST", "/withdraw"), ("POST", "/revoke")):
        answers = [
            assert_refused(
                stranger.call(method, f"/v1/grants/{reference}{suffix}"), 404, "not_found"
            )
            for reference in (grant.id, unknown, "nonsense", str(grant.id).upper())
        ]
        assert all(answer == answers[0] for answer in answers)
    grant.refresh_from_db()
    assert grant.status == "pending"
    assert stranger.call("GET", "/v1/grants").json()["results"] == []


def test_U4_a_refusal_without_a_caller_is_one_event_too(db: None) -> None:
    AgentClient().call("GET", "/v1/agents/me", proof=None)
    event = Event.objects.get()
    assert (event.outcome, event.actor_kind, event.reason) == ("denied", "anonymous", "malformed")


def test_every_method_that_is_not_there_is_refused(agent: AgentClient) -> None:
    for method in ("PUT", "PATCH"):
        assert agent.call(method, "/v1/grants").status_code == 405


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Basic",
        "Basic !",
        "Bearer x",
        "Basic eA==",
        "Basic eDp5",
        "Basic w6k6eA==",
        "Digest eDp5",
    ],
)
def test_bad_basic_credentials_are_an_unknown_client(db: None, header: str) -> None:
    response = Client().post(
        "/v1/revoke",
        "token=x",
        content_type="application/x-www-form-urlencoded",
        headers={"Authorization": header},
    )
    assert_refused(response, 401, "invalid_client")


@pytest.mark.parametrize(
    "encode", [quote, lambda text: "".join(f"%{ord(each):02x}" for each in text)]
)
def test_basic_credentials_may_be_form_encoded(
    provider_and_secret: tuple[ServiceProvider, str], encode: Callable[[str], str]
) -> None:
    """RFC 6749 section 2.3.1: some clients encode even what needs no encoding."""
    client_id, secret = encode(str(provider_and_secret[0].pk)), encode(provider_and_secret[1])
    form = "application/x-www-form-urlencoded"
    for password, status in (
        (secret, 200),
        (f"{secret}%20", 401),
        (f"+{secret}", 401),
        (f"%{secret}", 401),
    ):
        header = "Basic " + base64.b64encode(f"{client_id}:{password}".encode()).decode()
        answer = Client().post(
            "/v1/revoke", "token=x", content_type=form, headers={"Authorization": header}
        )
        assert answer.status_code == status, password


def test_credentials_of_another_scheme_are_not_read_as_basic(
    provider_and_secret: tuple[ServiceProvider, str],
) -> None:
    provider, secret = provider_and_secret
    form = "application/x-www-form-urlencoded"
    encoded = base64.b64encode(f"{provider.pk}:{secret}".encode()).decode()
    for scheme, status in (("BASIC", 200), ("Digest", 401)):
        headers = {"Authorization": f"{scheme} {encoded}"}
        answer = Client().post("/v1/revoke", "token=x", content_type=form, headers=headers)
        assert answer.status_code == status
