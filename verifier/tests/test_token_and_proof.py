"""Steps 1 to 7: the caller, its token and proof, and the state of all that the token depends on."""

import json
import secrets
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import time_machine
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from django.utils import timezone

from agentauth.protocol.dpop import make_proof
from agentauth.protocol.encoding import b64u_decode, b64u_encode
from agentauth.protocol.keys import LocalSigner, PrivateKey
from agentauth.protocol.token import sign_token
from audit.models import Event
from audit.tests.event_openings import opened
from kms.models import Key
from kms.services import disable_key
from registry.models import Agent, BarredKey, Grant, Token
from registry.services.agents import revoke_agent, suspend_agent
from registry.services.grants import revoke_grant, suspend_grant
from registry.services.humans import suspend_human
from registry.services.service_providers import revoke_service_provider
from registry.services.tokens import revoke_token
from verifier.tests.scene import (
    LOOK,
    SYSTEM,
    Scene,
    assert_refused,
    change,
    latest_claims,
    scene,
    spent_proofs,
    verdict,
)


def other_key() -> LocalSigner:
    return LocalSigner(PrivateKey.generate())


def test_a_good_call_is_answered_in_full(place: Scene) -> None:
    answer = place.ask(LOOK)
    event = Event.objects.get(kind="verifier.decision.allowed")
    assert answer.pop("expires_in") in range(890, 901)
    assert answer == {
        "valid": True,
        "decision_id": str(event.pk),
        "agent": {
            "id": str(place.agent.pk),
            "name": "Research Assistant",
            "model_origin": "models.example",
        },
        "subject": latest_claims(place)["sub"],
        "grant_id": str(place.grant.pk),
        "scope": "read:calendar",
        "capability": {"type": "read", "resource": "calendar"},
        "limits": {"rate_remaining": None, "budgets": [], "uses_remaining": None},
    }
    assert (event.agent_id, event.human_id, event.grant_id) == (
        place.agent.pk,
        place.human.pk,
        place.grant.pk,
    )
    assert event.data["action"] == {"type": "read"}
    assert opened(event)["details"] == {"resource": "calendar/work", "capability": "read:calendar"}


def test_VB_1_without_valid_credentials_the_answer_reveals_nothing(place: Scene) -> None:
    body, body_of_revoked = place.body(LOOK), place.body(LOOK)
    wrong = assert_refused(place, body, status=401, secret="not-the-secret")
    revoke_service_provider(service_provider=place.provider, actor=SYSTEM, now=timezone.now())
    assert assert_refused(place, body_of_revoked, status=401) == wrong
    assert wrong["error"] == "invalid_client"
    anonymous = place.client.post(
        "/v1/verify", data=json.dumps(body), content_type="application/json"
    )
    assert anonymous.status_code == 401
    assert anonymous.json()["error"] == "invalid_client"


def test_agent_proof_does_not_authenticate_at_verify(place: Scene) -> None:
    content = json.dumps(place.body(LOOK)).encode()
    proof = make_proof(
        place.signer,
        method="POST",
        url="http://localhost:8000/v1/verify",
        iat=int(timezone.now().timestamp()),
        jti="x",
        body=content,
    )
    answer = place.client.post(
        "/v1/verify", data=content, content_type="application/json", headers={"DPoP": proof}
    )
    assert answer.status_code == 401
    assert answer.json()["error"] == "invalid_client"


def test_VB_2_another_providers_token_looks_like_a_forged_one(place: Scene) -> None:
    other = scene()
    theirs = other.token()
    place.token()
    claims = latest_claims(place)
    forged = sign_token(
        claims, LocalSigner(PrivateKey.generate(), kid=Key.objects.get(purpose="token").kid)
    )
    answers = [
        assert_refused(place, place.body(LOOK, token=theirs)),
        assert_refused(place, place.body(LOOK, token=forged)),
        assert_refused(place, place.body(LOOK, token=sign_token(claims, other_key()))),
    ]
    assert all(answer == answers[0] for answer in answers)
    assert verdict(answers[0]) == "invalid_token/unknown"
    # The service provider is compared before the expiry is.
    with time_machine.travel(timezone.now() + timedelta(hours=1), tick=False):
        assert assert_refused(place, place.body(LOOK, token=theirs)) == answers[0]


def test_VB_2_a_signed_token_without_a_row_is_unknown(place: Scene) -> None:
    token = place.token()
    Token.objects.filter(grant=place.grant).delete()
    assert verdict(assert_refused(place, place.body(LOOK, token=token))) == "invalid_token/unknown"


def test_VB_2_a_grant_that_is_not_the_callers_is_unknown(place: Scene) -> None:
    # The signed audience names the caller, the rows name another service provider: both must.
    token, other = place.token(), scene()
    Grant.objects.filter(pk=place.grant.pk).update(service_provider=other.provider)
    assert verdict(assert_refused(place, place.body(LOOK, token=token))) == "invalid_token/unknown"


def test_VB_3_token_id_is_not_accepted_as_a_token(place: Scene) -> None:
    place.token()
    jti = Token.objects.get(grant=place.grant).jti
    body = place.body(LOOK)
    del body["token"]
    assert assert_refused(place, body, status=400)["error"] == "invalid_request"
    assert assert_refused(place, {**body, "jti": jti}, status=400)["error"] == "invalid_request"
    assert verdict(assert_refused(place, place.body(LOOK, token=jti))) == "invalid_token/malformed"


def test_VB_4_call_without_a_valid_proof_is_refused(place: Scene) -> None:
    body = place.body(LOOK)
    del body["proof"]
    for proof in ({}, {"proof": None}, {"proof": ""}, {"proof": "x.y"}):
        refusal = assert_refused(place, body | proof)
        assert verdict(refusal) == "invalid_dpop_proof/malformed", proof


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"method": "GET"}, "method"),
        ({"method": "post"}, "method"),
        ({"url": "{audience}/v1/others"}, "url"),
        ({"url": "{audience}x/v1/things"}, "url"),
        ({"url": "https://elsewhere.example/v1/things"}, "url"),
        ({"url": "{audience}/v1/../v1/things"}, "url"),
        ({"url": "not a url"}, "url"),
        ({"url": ""}, "url"),
    ],
)
def test_VB_6_the_proof_must_name_the_very_call(
    place: Scene, fields: dict[str, str], reason: str
) -> None:
    fields = {
        name: value.format(audience=place.provider.audience) for name, value in fields.items()
    }
    assert (
        verdict(assert_refused(place, place.body(LOOK) | fields)) == f"invalid_dpop_proof/{reason}"
    )


def test_VB_6_proof_naming_a_url_outside_the_audience_is_refused(place: Scene) -> None:
    token, url = place.token(), "https://elsewhere.example/v1/things"
    body = place.body(LOOK, token=token, url=url, proof=place.proof(token, url=url))
    assert verdict(assert_refused(place, body)) == "invalid_dpop_proof/url"


def other_tokens_proof(place: Scene, token: str) -> str:
    return place.proof(place.token())


def token_as_proof(place: Scene, token: str) -> str:
    return token


def flip_signature(proof: str) -> str:
    head, payload, signature = proof.split(".")
    return f"{head}.{payload}.{'A' if signature[0] != 'A' else 'B'}{signature[1:]}"


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda place, token: place.proof(token, iat=int(timezone.now().timestamp()) - 61), "iat"),
        # The window is 60 s, and a second may pass before the check.
        (lambda place, token: place.proof(token, iat=int(timezone.now().timestamp()) + 62), "iat"),
        (other_tokens_proof, "ath"),
        (lambda place, token: flip_signature(place.proof(token)), "signature"),
        (token_as_proof, "malformed"),
    ],
)
def test_refused_proof_names_its_reason(
    place: Scene, make: Callable[[Scene, str], str], expected: str
) -> None:
    token = place.token()
    body = place.body(LOOK, token=token, proof=make(place, token))
    assert verdict(assert_refused(place, body)) == f"invalid_dpop_proof/{expected}"
    # The refusal is in the feeds of the agent and its human, since the token was valid.
    assert place.denial is not None
    assert (place.denial.agent_id, place.denial.human_id) == (place.agent.pk, place.human.pk)


def test_DJ_17_agent_with_a_forged_owner_is_refused(place: Scene) -> None:
    """The refusal does not appear in the activity of the owner whom an attacker wrote there."""
    refused, early = place.body(LOOK), place.body(LOOK, proof="x")
    change(Agent.objects.filter(pk=place.agent.pk), human=scene().human)
    assert verdict(assert_refused(place, refused)) == "invalid_token/grant_inactive"
    assert place.denial is not None
    assert (place.denial.agent_id, place.denial.human_id) == (place.agent.pk, None)
    assert verdict(assert_refused(place, early)) == "invalid_dpop_proof/malformed"
    assert (place.denial.agent_id, place.denial.human_id) == (place.agent.pk, None)


def test_DP_100_unknown_nonce_is_refused_and_the_proof_is_not_spent(place: Scene) -> None:
    token, jti = place.token(), secrets.token_urlsafe()
    body = place.body(LOOK, token=token, proof=place.proof(token, jti=jti, nonce="stale"))
    assert assert_refused(place, body)["error"] == "use_dpop_nonce"
    assert place.ask(LOOK, token=token, proof=place.proof(token, jti=jti))["valid"]


def test_proof_by_another_key_is_refused_and_not_spent(place: Scene) -> None:
    token = place.token()
    thief = place.body(LOOK, token=token, proof=place.proof(token, signer=other_key()))
    assert verdict(assert_refused(place, thief)) == "invalid_token/binding"
    assert spent_proofs() == 0
    assert place.ask(LOOK, token=token)["valid"]
    assert spent_proofs() == 1


def test_a_proof_passes_once(place: Scene) -> None:
    body = place.body(LOOK)
    assert place.answer(body)["valid"]
    assert verdict(assert_refused(place, body)) == "invalid_dpop_proof/replayed"
    # The same jti in a new signature is the same proof.
    token, jti = place.token(), secrets.token_urlsafe()
    assert place.ask(token=token, proof=place.proof(token, jti=jti))["valid"]
    again = place.body(
        LOOK,
        token=token,
        proof=place.proof(token, jti=jti, iat=int(timezone.now().timestamp()) - 1),
    )
    assert verdict(assert_refused(place, again)) == "invalid_dpop_proof/replayed"


@pytest.mark.parametrize(
    ("action", "first"),
    [
        ({"type": "write", "resource": "calendar"}, "insufficient_scope/no_capability"),
        (None, "valid"),
    ],
)
def test_a_proof_is_spent_whatever_follows(
    place: Scene, action: dict[str, Any] | None, first: str
) -> None:
    body = place.body(action)
    assert verdict(place.answer(body)) == first
    assert verdict(assert_refused(place, body)) == "invalid_dpop_proof/replayed"


def test_proof_with_a_suspended_agents_token_is_spent(place: Scene) -> None:
    body = place.body(LOOK)
    suspend_agent(agent=place.agent, actor=SYSTEM, now=timezone.now())
    assert verdict(assert_refused(place, body)) == "invalid_token/agent_inactive"
    assert verdict(assert_refused(place, body)) == "invalid_dpop_proof/replayed"


def test_a_dry_run_does_not_spend_and_does_see_what_was_spent(place: Scene) -> None:
    body = place.body(LOOK)
    dry = body | {"dry_run": True}
    for _ in range(2):
        assert place.answer(dry)["valid"]
    assert place.answer(body)["valid"]
    assert verdict(assert_refused(place, dry)) == "invalid_dpop_proof/replayed"


def proof_with_private_key(place: Scene, token: str) -> str:
    private = load_pem_private_key(place.pem.encode(), None)
    assert isinstance(private, Ed25519PrivateKey)
    head, payload, _ = place.proof(token).split(".")
    header = json.loads(b64u_decode(head))
    header["jwk"]["d"] = b64u_encode(private.private_bytes_raw())
    signing_input = f"{b64u_encode(json.dumps(header).encode())}.{payload}"
    return f"{signing_input}.{b64u_encode(private.sign(signing_input.encode()))}"


def test_a_private_key_in_a_proof_bars_it_for_ever(place: Scene) -> None:
    token = place.token()
    proof = proof_with_private_key(place, token)
    assert verdict(place.ask(LOOK, token=token, proof=proof)) == "invalid_dpop_proof/malformed"
    assert BarredKey.objects.filter(jkt=place.agent.jkt).exists()
    refusal = assert_refused(place, place.body(LOOK, token=token))
    assert verdict(refusal) == "invalid_token/agent_inactive"


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (
            lambda p: revoke_token(
                jti=Token.objects.get(grant=p.grant).jti, actor=SYSTEM, now=timezone.now()
            ),
            "revoked",
        ),
        # A rotated key: tokens bound to the old one are refused.
        (lambda p: change(Agent.objects.filter(pk=p.agent.pk), jkt="A" * 43), "revoked"),
        (
            lambda p: suspend_grant(grant=p.grant, actor=SYSTEM, now=timezone.now()),
            "grant_inactive",
        ),
        (lambda p: revoke_grant(grant=p.grant, actor=SYSTEM, now=timezone.now()), "grant_inactive"),
        (lambda p: change(Grant.objects.filter(pk=p.grant.pk), version=2), "grant_inactive"),
        (
            lambda p: change(Grant.objects.filter(pk=p.grant.pk), valid_until=timezone.now()),
            "grant_inactive",
        ),
        (
            lambda p: suspend_agent(agent=p.agent, actor=SYSTEM, now=timezone.now()),
            "agent_inactive",
        ),
        (
            lambda p: change(Agent.objects.filter(pk=p.agent.pk), expires_at=timezone.now()),
            "agent_inactive",
        ),
        (lambda p: revoke_agent(agent=p.agent, actor=SYSTEM, now=timezone.now()), "agent_inactive"),
        (
            lambda p: suspend_human(human=p.human, actor=SYSTEM, now=timezone.now()),
            "human_inactive",
        ),
    ],
)
def test_VB_12_what_is_revoked_is_refused_at_once(
    place: Scene, act: Callable[[Scene], object], reason: str
) -> None:
    token = place.token()
    assert place.ask(LOOK, token=token)["valid"]
    act(place)
    answer = assert_refused(place, place.body(LOOK, token=token))
    assert verdict(answer) == f"invalid_token/{reason}"
    # Also for a dry run, and without an action.
    assert (
        verdict(assert_refused(place, place.body(token=token, dry_run=True)))
        == f"invalid_token/{reason}"
    )


def test_VB_12_a_disabled_keys_tokens_are_unknown(place: Scene) -> None:
    token = place.token()
    disable_key(
        kid=Key.objects.get(purpose="token").kid, actor=SYSTEM, now=timezone.now(), even_last=True
    )
    assert verdict(assert_refused(place, place.body(LOOK, token=token))) == "invalid_token/unknown"


def test_a_token_ends_to_the_second_and_begins_with_little_leeway(place: Scene) -> None:
    token, start = place.token(), timezone.now()
    # Issued for 900 s, valid from 10 s before; up to 3 s may pass between the issue and `start`.
    for seconds, expected in [
        (898, "valid"),
        (901, "invalid_token/expired"),
        (-9, "valid"),
        (-13, "invalid_token/not_yet_valid"),
    ]:
        with time_machine.travel(start + timedelta(seconds=seconds), tick=False):
            body = place.body(LOOK, token=token)
            answer = place.answer(body) if expected == "valid" else assert_refused(place, body)
            assert verdict(answer) == expected, seconds


def test_other_kind_of_jws_is_refused_as_a_token(place: Scene) -> None:
    token = place.token()
    for other in (place.proof(token), "", "a" * 9000):
        refusal = assert_refused(place, place.body(LOOK, token=other))
        assert verdict(refusal) == "invalid_token/malformed"
