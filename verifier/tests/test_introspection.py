"""POST /v1/introspect (RFC 7662): only a valid token of the caller's audience is described."""

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any, cast

import pytest
import time_machine
from django.db import transaction
from django.http import HttpResponse
from django.utils import timezone

from agentauth.protocol.keys import LocalSigner, PrivateKey
from agentauth.protocol.token import sign_token
from audit.models import Event
from kms.models import Key
from kms.services import disable_key, signer
from kms.state_change_publisher import Subject, publish_change
from registry.models import Agent, Grant, SpentProof, Token
from registry.services.agents import revoke_agent, suspend_agent
from registry.services.grants import revoke_grant, suspend_grant
from registry.services.humans import suspend_human
from registry.services.tokens import revoke_token
from registry.tests.cast import basic
from tests.forging import changed_signature
from verifier.tests.scene import PAY, READ, SYSTEM, Scene, change, counters, scene

pytestmark = pytest.mark.django_db
FORM = "application/x-www-form-urlencoded"
INACTIVE = {"active": False}


def post(place: Scene, body: str, path: str = "/v1/introspect", **headers: str) -> HttpResponse:
    credentials = headers or basic(place.provider, place.secret)
    return cast(
        "HttpResponse", place.client.post(path, body, content_type=FORM, headers=credentials)
    )


def introspect(place: Scene, token: str, more: str = "") -> dict[str, Any]:
    response = post(place, f"token={token}{more}")
    assert response.status_code == 200, response.content
    assert response["Cache-Control"] == "no-store"
    assert response["Content-Type"] == "application/json"
    answer: dict[str, Any] = json.loads(response.content)
    return answer


def test_a_good_token_says_what_it_holds() -> None:
    place = scene(READ, PAY, max_uses=3)
    token = place.token()
    claims = Token.objects.get().claims
    before = (counters(), Event.objects.count(), SpentProof.objects.count())
    # RFC 7662 section 2.1: unknown hints and parameters are ignored.
    answer = introspect(place, token, "&token_type_hint=refresh_token&unknown=1")
    assert answer == {
        "active": True,
        "token_type": "DPoP",
        "scope": "read:calendar",
        "client_id": str(place.agent.pk),
        "sub": claims["sub"],
        "aud": place.provider.audience,
        "iss": "http://localhost:8000",
        "exp": claims["exp"],
        "iat": claims["iat"],
        "jti": claims["jti"],
        "cnf": {"jkt": place.signer.public.thumbprint},
        "authorization_details": [{"type": "agentauth", "capabilities": [READ, PAY]}],
        "verify": "online",
    }
    # Introspection consumes nothing and decides nothing.
    assert before == (counters(), Event.objects.count(), SpentProof.objects.count())


def test_a_grant_without_an_envelope_does_not_ask_for_verify(place: Scene) -> None:
    assert "verify" not in introspect(place, place.token())


def _jti() -> str:
    return Token.objects.get().jti


def gone(_: Scene) -> None:
    with transaction.atomic():
        publish_change(Subject.TOKEN, _jti(), now=timezone.now())
        Token.objects.all().delete()


ENDS: dict[str, Callable[[Scene], object]] = {
    "token revoked": lambda _: revoke_token(jti=_jti(), actor=SYSTEM, now=timezone.now()),
    "grant revoked": lambda place: revoke_grant(
        grant=place.grant, actor=SYSTEM, now=timezone.now()
    ),
    "grant suspended": lambda place: suspend_grant(
        grant=place.grant, actor=SYSTEM, now=timezone.now()
    ),
    "grant of another version": lambda _: change(Grant.objects.all(), version=2),
    "agent suspended": lambda place: suspend_agent(
        agent=place.agent, actor=SYSTEM, now=timezone.now()
    ),
    "agent revoked": lambda place: revoke_agent(
        agent=place.agent, actor=SYSTEM, now=timezone.now()
    ),
    "agent expired": lambda _: change(Agent.objects.all(), expires_at=timezone.now()),
    "agent with another key": lambda _: change(Agent.objects.all(), jkt="x" * 43),
    "human suspended": lambda place: suspend_human(
        human=place.human, actor=SYSTEM, now=timezone.now()
    ),
    "signing key disabled": lambda _: disable_key(
        kid=Key.objects.get(purpose="token").kid, actor=SYSTEM, now=timezone.now(), even_last=True
    ),
    "row gone": gone,
}


@pytest.mark.parametrize("end", ENDS.values(), ids=list(ENDS))
def test_OA_22_token_no_longer_valid_is_reported_as_inactive_only(
    place: Scene, end: Callable[[Scene], object]
) -> None:
    token = place.token()
    assert introspect(place, token)["active"] is True
    end(place)
    assert introspect(place, token) == INACTIVE


def test_OA_22_an_expired_token_is_inactive(place: Scene) -> None:
    token = place.token()
    with time_machine.travel(timezone.now() + timedelta(seconds=901)):
        assert introspect(place, token) == INACTIVE


def test_OA_22_token_of_another_audience_is_inactive_for_any_caller(place: Scene) -> None:
    token, stranger = place.token(), scene()
    assert introspect(stranger, token) == INACTIVE
    # Even if our signature covers this audience but the row has another: the rows were swapped.
    claims = Token.objects.get(grant=place.grant).claims | {"aud": stranger.provider.audience}
    exchanged = sign_token(claims, signer(purpose="token", now=timezone.now()))
    assert introspect(stranger, exchanged) == INACTIVE


def test_OA_22_forged_and_unreadable_tokens_are_inactive_and_no_fault(place: Scene) -> None:
    token = place.token()
    claims = Token.objects.get().claims
    key = Key.objects.get(purpose="token")
    forged = sign_token(claims, LocalSigner(PrivateKey.generate(), kid=key.kid))
    head, body, signature = token.split(".")
    bad = ["x", ".", "..", "a.b.c", "%00", "%ED%A0%80", "%FF", "é", "x" * 9_000, "." * 60_000]
    bad += [
        forged,
        changed_signature(token),
        f"{head}.{body}.",
        f".{body}.{signature}",
        token + token,
        _jti(),
    ]
    for text in bad:
        assert introspect(place, text) == INACTIVE, text[:50]
    assert introspect(place, token)["active"] is True


def test_OA_22_introspection_requires_known_credentials(place: Scene) -> None:
    token = place.token()
    for headers in ({"Accept": "*/*"}, basic(place.provider, "wrong")):
        response = post(place, f"token={token}", **headers)
        assert (response.status_code, json.loads(response.content)["error"]) == (
            401,
            "invalid_client",
        )
        assert response["WWW-Authenticate"].startswith("Basic")
        assert response["Cache-Control"] == "no-store"
    proof = place.proof("", method="POST", url="http://localhost:8000/v1/introspect")
    assert post(place, f"token={token}", DPoP=proof).status_code == 401


@pytest.mark.parametrize("body", ["", "token=", "token=a&token=b", "token_type_hint=access_token"])
def test_exactly_one_token_is_asked_about(place: Scene, body: str) -> None:
    response = post(place, body)
    assert (response.status_code, json.loads(response.content)["error"]) == (400, "invalid_request")


def test_a_token_in_the_address_is_refused(place: Scene) -> None:
    token = place.token()
    response = post(place, f"token={token}", f"/v1/introspect?token={token}")
    assert (response.status_code, json.loads(response.content)["error"]) == (400, "invalid_request")
    assert token not in response.content.decode()


def test_only_a_form_is_read(place: Scene) -> None:
    response = place.client.post(
        "/v1/introspect",
        json.dumps({"token": place.token()}),
        content_type="application/json",
        headers=basic(place.provider, place.secret),
    )
    assert response.status_code == 415
