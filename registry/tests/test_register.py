"""POST /v1/agents: which agents may register, the answer, and the refusals."""

import json
import re
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.conf import settings

from agentauth.protocol.encoding import b64u_encode
from agentauth.protocol.errors import InvalidEnrolmentCodeError, InvalidStateError
from agentauth.protocol.jose import sign_compact
from audit.models import Event
from registry.models import Agent, BarredKey, EnrolmentCode, Human
from registry.services.agents import revoke_agent, suspend_agent
from registry.services.enrolment_codes import (
    create_enrolment_code,
    find_enrolment_code,
    use_enrolment_code,
)
from registry.services.humans import suspend_human
from registry.tests.cast import READ_CALENDAR, TESTER, AgentClient, assert_refused, claim, enrolled
from tests.forging import changed_signature

pytestmark = pytest.mark.django_db


def code_of(human: Human, now: datetime) -> str:
    return create_enrolment_code(human=human, actor=TESTER, now=now)[1]


def test_without_a_code_the_agent_is_unclaimed_and_gets_a_claim_link() -> None:
    client = AgentClient()
    response = client.register()
    body = response.json()
    assert response.status_code == 201
    assert body.keys() == {"agent_id", "status", "jkt", "claim_url", "claim_code", "expires_at"}
    assert (body["status"], body["jkt"]) == ("unclaimed", client.jkt)
    assert re.fullmatch(rf"{settings.PUBLIC_URL}/claim/[A-Za-z0-9_-]{{43}}/", body["claim_url"])
    assert re.fullmatch(r"[0-9A-HJKMNP-TV-Z]{8}", body["claim_code"])
    event = Event.objects.get(kind="registry.agent.registered")
    assert event.agent_id == client.agent().id
    assert client.agent().name not in json.dumps(event.data)


@pytest.mark.parametrize("alg", ["EdDSA", "ES256"])
def test_with_a_code_the_agent_is_its_humans_and_active(
    alice: Human, now: datetime, alg: str
) -> None:
    client = AgentClient(alg)
    body = client.register(code_of(alice, now)).json()
    assert body["status"] == "active"
    assert "claim_url" not in body
    assert client.agent().human == alice


def test_a_code_is_read_as_people_type_it(alice: Human, now: datetime) -> None:
    typed = code_of(alice, now).lower().replace("0", "o").replace("1", "l")
    assert AgentClient().register(f" {typed} ").status_code == 201


def test_the_same_key_and_manifest_is_the_same_agent(alice: Human, now: datetime) -> None:
    client = AgentClient()
    first, second = client.register(), client.register()
    assert (first.status_code, second.status_code) == (201, 200)
    assert first.json()["claim_url"] == second.json()["claim_url"]
    assert Event.objects.filter(kind="registry.agent.registered").count() == 1
    claim(client, alice, now=now)
    third = client.register()
    assert (third.status_code, third.json()["status"]) == (200, "active")
    assert "claim_url" not in third.json()


def test_a_repeated_registration_with_its_used_code_is_the_same_agent(
    alice: Human, now: datetime
) -> None:
    client, code = AgentClient(), code_of(alice, now)
    assert [client.register(code).status_code for _ in range(2)] == [201, 200]
    assert EnrolmentCode.objects.get().failures == 0


def test_an_owned_agent_keeps_a_further_code_of_its_human_unspent(
    alice: Human, now: datetime
) -> None:
    client = enrolled(alice, now=now)
    further = code_of(alice, now)
    assert client.register(further).status_code == 200
    assert AgentClient().register(further).status_code == 201


def test_enrolment_code_read_by_two_agents_is_spent_once(alice: Human, now: datetime) -> None:
    clients = AgentClient(), AgentClient()
    assert {client.register().status_code for client in clients} == {201}
    first, second = (client.agent() for client in clients)
    row = find_enrolment_code(code_of(alice, now), now=now)
    use_enrolment_code(row, agent=first, now=now)
    with pytest.raises(InvalidEnrolmentCodeError):
        use_enrolment_code(row, agent=second, now=now)
    assert EnrolmentCode.objects.get(pk=row.pk).agent == first


def test_an_ended_link_is_replaced_by_a_new_one() -> None:
    client = AgentClient()
    old = client.register().json()
    Agent.objects.update(claim_failures=5)
    new = client.register().json()
    assert new["claim_url"] != old["claim_url"]
    assert new["claim_code"] != old["claim_code"]
    assert client.agent().claim_failures == 0


def test_an_unclaimed_agent_may_bring_a_code_later(alice: Human, now: datetime) -> None:
    client = AgentClient()
    client.register()
    assert client.register(code_of(alice, now)).json()["status"] == "active"
    assert client.agent().human == alice


def test_another_manifest_for_a_known_key_conflicts() -> None:
    client = AgentClient()
    client.register()
    changed = client.manifest(capabilities=[READ_CALENDAR])
    assert_refused(client.register(manifest=changed), 409, "manifest_conflict")
    assert_refused(
        client.register(manifest=client.manifest(name="Another")), 409, "manifest_conflict"
    )


def test_JK_11_a_known_key_is_never_taken_over_by_another_humans_code(
    agent: AgentClient, alice: Human, mallory: Human, now: datetime
) -> None:
    assert_refused(agent.register(code_of(mallory, now)), 409, "key_in_use")
    assert agent.agent().human == alice


def test_JK_12_registration_needs_a_proof_by_the_manifests_own_key() -> None:
    honest, thief = AgentClient(), AgentClient()
    assert_refused(thief.register(manifest=honest.manifest()), 400, "invalid_dpop_proof")
    body = {"manifest": honest.manifest()}
    assert_refused(honest.call("POST", "/v1/agents", body, proof=None), 400, "invalid_dpop_proof")
    assert not Agent.objects.exists()


def test_a_proof_registers_once() -> None:
    client = AgentClient()
    body = json.dumps({"manifest": client.manifest()}).encode()
    proof = client.proof("POST", "/v1/agents", body)
    assert client.call("POST", "/v1/agents", body, proof=proof).status_code == 201
    answer = assert_refused(
        client.call("POST", "/v1/agents", body, proof=proof), 400, "invalid_dpop_proof"
    )
    assert answer["reason"] == "replayed"


def test_JK_8_a_private_key_is_refused_and_barred_for_ever(
    caplog: pytest.LogCaptureFixture,
) -> None:
    client = AgentClient()
    response = client.register(manifest=client.disclosing("agent-manifest+jwt"))
    assert_refused(response, 400, "invalid_request")
    assert BarredKey.objects.get().jkt == client.jkt
    event = Event.objects.get(kind="registry.agent_key.barred")
    assert event.reason == "private_key_submitted"
    assert client.private_jwk()["d"] not in caplog.text + response.content.decode() + json.dumps(
        event.data
    )
    # Disclosed again it is refused as before, with a single event.
    assert_refused(
        client.register(manifest=client.disclosing("agent-manifest+jwt")), 400, "invalid_request"
    )
    assert Event.objects.filter(kind="registry.agent_key.barred").count() == 1
    # The key is barred, even without the private member.
    assert_refused(client.register(), 401, "invalid_client")


def test_JK_8_a_private_key_in_a_proof_bars_it_too_and_ends_its_agent(agent: AgentClient) -> None:
    data = b""
    claims = {"jti": "x", "htm": "GET", "htu": f"{settings.PUBLIC_URL}/v1/agents/me", "iat": 0}
    proof = sign_compact(claims, agent.signer, typ="dpop+jwt", header={"jwk": agent.private_jwk()})
    assert_refused(agent.call("GET", "/v1/agents/me", data, proof=proof), 401, "invalid_dpop_proof")
    assert agent.agent().status == "revoked"
    assert_refused(agent.call("GET", "/v1/agents/me"), 401, "invalid_client")


def test_JK_8_invented_private_member_bars_no_key(agent: AgentClient) -> None:
    jwk = {**agent.signer.public.jwk, "d": b64u_encode(bytes(32))}
    leaking = sign_compact({}, agent.signer, typ="agent-manifest+jwt", header={"jwk": jwk})
    assert_refused(agent.register(manifest=leaking), 400, "invalid_request")
    assert not BarredKey.objects.exists()
    assert agent.agent().status == "active"


def test_a_revoked_key_registers_nothing(agent: AgentClient, now: datetime) -> None:
    for _ in range(2):
        revoke_agent(agent=agent.agent(), actor=TESTER, now=now)
    assert Event.objects.filter(kind="registry.agent.revoked").count() == 1
    with pytest.raises(InvalidStateError):
        suspend_agent(agent=agent.agent(), actor=TESTER, now=now)
    assert_refused(agent.register(), 401, "invalid_client")


@pytest.mark.parametrize("bad", ["", "nonsense", "AAAAAAAA-BBBB", "x" * 64])
def test_a_bad_code_is_refused_and_registers_nothing(bad: str) -> None:
    body = {"manifest": (client := AgentClient()).manifest(), "enrolment_code": bad or "-"}
    assert_refused(client.call("POST", "/v1/agents", body), 400, "invalid_enrolment_code")
    assert not Agent.objects.exists()


def test_DJ_24_five_wrong_secrets_lock_the_code(alice: Human, now: datetime) -> None:
    code = code_of(alice, now)
    wrong = code[:9] + "0" * 26
    for _ in range(6):
        assert_refused(AgentClient().register(wrong), 400, "invalid_enrolment_code")
    assert_refused(AgentClient().register(code), 400, "invalid_enrolment_code")
    # A locked code counts no further: there is nothing left to guard.
    assert EnrolmentCode.objects.get().failures == 5
    assert (
        Event.objects.get(kind="registry.enrolment_code.failed", reason="locked").human_id
        == alice.pk
    )


def test_four_wrong_secrets_do_not(alice: Human, now: datetime) -> None:
    code = code_of(alice, now)
    for _ in range(4):
        assert_refused(AgentClient().register(code[:9] + "0" * 26), 400, "invalid_enrolment_code")
    assert AgentClient().register(code).status_code == 201


def test_DJ_24_a_used_an_old_and_a_suspended_humans_code_are_refused(
    alice: Human, bob: Human, now: datetime
) -> None:
    used = code_of(alice, now)
    AgentClient().register(used)
    assert_refused(AgentClient().register(used), 400, "invalid_enrolment_code")
    old = code_of(alice, now - timedelta(minutes=15))
    assert_refused(AgentClient().register(old), 400, "invalid_enrolment_code")
    bobs = code_of(bob, now)
    suspend_human(human=bob, actor=TESTER, now=now)
    assert_refused(AgentClient().register(bobs), 400, "invalid_enrolment_code")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"manifest": 1},
        {"manifest": ""},
        {"status": "active"},
        {"human": "alice"},
        {"jkt": "x"},
        [],
    ],
)
def test_members_that_are_unknown_missing_or_of_another_type_are_refused(body: Any) -> None:
    client = AgentClient()
    if isinstance(body, dict) and "manifest" not in body and body:
        body = {"manifest": client.manifest(), **body}
    assert_refused(client.call("POST", "/v1/agents", body), 400, "invalid_request")
    assert not Agent.objects.exists()


def test_a_manifest_for_another_registry_or_altered_is_refused() -> None:
    client = AgentClient()
    whole = client.manifest()
    assert_refused(client.register(manifest=changed_signature(whole)), 400, "invalid_manifest")
    foreign = sign_compact(
        {"aud": "https://other.example", "iat": 0, "exp": 1, "jti": "a", "name": "n",
         "model_origin": "m.example", "capabilities": [READ_CALENDAR]},
        client.signer, typ="agent-manifest+jwt", header={"jwk": client.signer.public.jwk},
    )  # fmt: skip
    assert_refused(client.register(manifest=foreign), 400, "invalid_manifest")


def test_registration_retry_has_the_same_answer_and_stores_no_secret() -> None:
    from registry.models import IdempotencyRecord

    client = AgentClient()
    manifest = client.manifest()
    first = client.register(manifest=manifest, key="retry-1")
    second = client.register(manifest=manifest, key="retry-1")
    assert (first.status_code, first.json()) == (second.status_code, second.json())
    assert first.status_code == 201
    stored = json.dumps(IdempotencyRecord.objects.get().body)
    secret = first.json()["claim_url"].split("/")[-2]
    assert secret not in stored
    assert first.json()["claim_code"] not in stored


def test_me_tells_the_agent_of_itself(agent: AgentClient) -> None:
    body = agent.call("GET", "/v1/agents/me").json()
    assert (body["status"], body["jkt"], body["name"]) == (
        "active",
        agent.jkt,
        "Research Assistant",
    )
    assert "human" not in body


def test_delete_ends_the_agent_and_what_it_asks_for(
    agent: AgentClient, service_provider: Any
) -> None:
    grant_id = agent.ask(service_provider).json()["grant_id"]
    response = agent.call("DELETE", "/v1/agents/me")
    assert (response.status_code, response.content) == (204, b"")
    assert agent.agent().status == "revoked"
    assert agent.agent().grants.get(pk=grant_id).status == "withdrawn"
    assert_refused(agent.call("GET", "/v1/agents/me"), 401, "invalid_client")
    assert Event.objects.filter(kind="registry.agent.revoked").count() == 1


def test_two_agents_have_two_keys(alice: Human, now: datetime) -> None:
    assert enrolled(alice, now=now).jkt != enrolled(alice, now=now).jkt
