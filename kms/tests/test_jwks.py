"""The public key set, and the command that rotates keys."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import time_machine
from django.core.management import CommandError, call_command
from pytest_django.fixtures import Settings
from rest_framework.test import APIRequestFactory

from agentauth.protocol.keys import parse_jwk
from audit.models import Event
from audit.services import Actor
from audit.tests.command_output import json_of, output_of
from kms.jwks_view import JwksView
from kms.lifetimes import PUBLISHED_BEFORE_USE, TOKEN_OVERLAP
from kms.models import Key
from kms.services import disable_key, promote_due_keys, rotate_key, signer

pytestmark = pytest.mark.django_db
NOW = datetime(2026, 11, 25, 9, 30, tzinfo=UTC)
ACTOR = Actor("system", "test")


@pytest.fixture(autouse=True)
def clock() -> Iterator[time_machine.Traveller]:
    with time_machine.travel(NOW, tick=False) as traveller:
        yield traveller


def _set() -> list[dict[str, Any]]:
    response = JwksView.as_view()(APIRequestFactory().get("/.well-known/jwks.json"))
    response.render()
    assert response.status_code == 200
    keys: list[dict[str, Any]] = json.loads(response.content)["keys"]
    return keys


def test_JK_15_the_set_holds_public_members_only_and_each_kid_once(
    clock: time_machine.Traveller,
) -> None:
    for step in range(4):
        rotate_key(purpose="token", actor=ACTOR, now=NOW + step * PUBLISHED_BEFORE_USE)
        for other in ("receipt", "audit"):
            rotate_key(purpose=other, actor=ACTOR, now=NOW + step * PUBLISHED_BEFORE_USE)
    clock.move_to(NOW + 3 * PUBLISHED_BEFORE_USE)
    keys = _set()
    assert len(keys) == 4
    assert len({key["kid"] for key in keys}) == 4
    for key in keys:
        assert set(key) == {"kty", "crv", "x", "kid", "use", "alg"}
        assert (key["kty"], key["use"], key["alg"]) == ("OKP", "sig", "EdDSA")
        assert parse_jwk(key).thumbprint == key["kid"]
    assert {key["kid"] for key in keys} == set(
        Key.objects.filter(purpose="token").values_list("kid", flat=True)
    )


def test_the_alg_is_the_one_in_token_headers() -> None:
    rotate_key(purpose="token", actor=ACTOR, now=NOW)
    assert _set()[0]["alg"] == signer(purpose="token", now=NOW).alg


def test_a_retired_key_leaves_the_set_when_no_token_of_it_can_live(
    clock: time_machine.Traveller,
) -> None:
    old, new = (rotate_key(purpose="token", actor=ACTOR, now=NOW) for _ in range(2))
    end = NOW + PUBLISHED_BEFORE_USE + TOKEN_OVERLAP
    clock.move_to(end - timedelta(seconds=1))
    promote_due_keys(now=end - timedelta(seconds=1))
    assert {key["kid"] for key in _set()} == {old.kid, new.kid}
    clock.move_to(end)
    assert {key["kid"] for key in _set()} == {new.kid}


def test_a_disabled_key_leaves_the_set_at_once() -> None:
    key = rotate_key(purpose="token", actor=ACTOR, now=NOW)
    disable_key(kid=key.kid, actor=ACTOR, now=NOW, even_last=True)
    assert _set() == []


def test_the_set_may_be_kept_thirty_seconds_and_needs_no_caller() -> None:
    response = JwksView.as_view()(
        APIRequestFactory().get("/.well-known/jwks.json", HTTP_AUTHORIZATION="Basic bad")
    )
    assert response.headers["Cache-Control"] == "public, max-age=30"


def test_reading_the_set_makes_no_key() -> None:
    assert _set() == []
    assert not Key.objects.exists()


def test_the_command_makes_the_first_key_and_then_the_next() -> None:
    answers = [json_of("rotate_key", "token") for _ in range(2)]
    assert [Key.objects.get(kid=answer["kid"]).state for answer in answers] == ["active", "next"]
    assert answers[1]["active_from"] == "2026-11-25T09:32:10Z"
    with pytest.raises(CommandError, match="published"):
        call_command("rotate_key", "token")
    assert Event.objects.count() == 2


def test_the_command_speaks_plainly_and_knows_its_purposes() -> None:
    said = output_of("rotate_key", "receipt")
    assert Key.objects.get().kid in said
    with pytest.raises(CommandError, match="invalid choice"):
        call_command("rotate_key", "everything")


def test_ensure_keys_gives_every_purpose_one_key_and_is_safe_to_repeat() -> None:
    first, second = json_of("ensure_keys"), json_of("ensure_keys")
    assert first == second
    assert set(first) == {"token", "audit", "receipt"}
    assert dict(line.split(": ") for line in output_of("ensure_keys").splitlines()) == first
    assert output_of("ensure_keys", verbosity=0) == ""


def test_ensure_keys_says_so_where_no_key_can_be_made(settings: Settings) -> None:
    settings.KEY_BACKEND = "nowhere"
    with pytest.raises(CommandError, match="no key backend named"):
        output_of("ensure_keys")
    assert not Key.objects.exists()


def test_a_due_switch_is_recorded(clock: time_machine.Traveller) -> None:
    for _ in range(2):
        rotate_key(purpose="token", actor=ACTOR, now=NOW)
    clock.move_to(NOW + PUBLISHED_BEFORE_USE)
    assert promote_due_keys(now=NOW + PUBLISHED_BEFORE_USE) == 1
