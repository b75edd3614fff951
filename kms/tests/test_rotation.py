"""Rotation by time, keys that an operator made, and how each key introduces the next one."""

import logging
from datetime import timedelta
from pathlib import Path

import pytest
from pytest_django.fixtures import Settings

from agentauth.protocol.errors import InvalidStateError, TemporarilyUnavailableError
from agentauth.protocol.key_introduction import introduced_keys
from agentauth.protocol.keys import parse_jwk
from audit.models import Event
from kms import backends, services
from kms.models import Key
from kms.services import (
    ROTATE_AGAIN,
    disable_key,
    introductions,
    promote_due_keys,
    rotate_due_keys,
    rotate_key,
    signer,
)
from kms.tests.test_keys import ACTOR, NOW, SWITCH

pytestmark = pytest.mark.django_db
QUARTER = timedelta(days=90)


def rotated(**more: object) -> Key:
    return rotate_key(purpose="token", actor=ACTOR, now=NOW, **more)  # type: ignore[arg-type]


def reached(pinned: Key, settings: Settings) -> list[str]:
    keys = introduced_keys(
        parse_jwk(pinned.public_jwk),
        introductions(purpose="token"),
        expected_issuer=settings.ISSUER,
        expected_purpose="token",
    )
    return [key.thumbprint for key in keys]


def three() -> list[Key]:
    keys = []
    for number in range(3):
        at = NOW + timedelta(hours=number)
        promote_due_keys(now=at)
        keys.append(rotate_key(purpose="token", actor=ACTOR, now=at))
    return keys


def test_each_key_is_introduced_by_the_one_before(settings: Settings) -> None:
    keys = three()
    kids = [key.kid for key in keys]
    assert [bool(key.introduction) for key in keys] == [False, True, True]
    assert [reached(key, settings) for key in keys] == [kids, kids[1:], kids[2:]]


def test_disabled_key_is_in_no_introduction(settings: Settings) -> None:
    first, second, third = three()
    disable_key(kid=second.kid, actor=ACTOR, now=NOW + timedelta(hours=3))
    assert introductions(purpose="token") == []
    assert reached(first, settings) == [first.kid]
    assert reached(third, settings) == [third.kid]


def test_where_all_before_are_disabled_the_next_comes_without_a_word() -> None:
    first = rotated()
    disable_key(kid=first.kid, actor=ACTOR, now=NOW, even_last=True)
    assert rotated().introduction == ""


def test_current_key_that_cannot_sign_stops_rotation_unless_overridden(
    key_directory: Path,
) -> None:
    first = rotated()
    (key_directory / first.uri.removeprefix("file:")).unlink()
    services._open_signer.cache_clear()
    with pytest.raises(TemporarilyUnavailableError):
        rotated()
    assert Key.objects.count() == 1
    # No unused key is left in the backend, or each run of the job would add one.
    assert list(key_directory.iterdir()) == []
    assert rotated(introduced=False).introduction == ""


def test_a_key_that_an_operator_made_is_taken_as_it_is(settings: Settings) -> None:
    rotated()
    uri, public = backends.create(purpose="token")
    key = rotated(uri=uri)
    assert (key.uri, key.kid, key.public_jwk) == (uri, public.thumbprint, public.jwk)
    public.verify(b"m", signer(purpose="token", now=SWITCH).sign(b"m"), alg="EdDSA")


@pytest.mark.parametrize(
    "uri", ["file:nonsense", "nowhere:token-x", "", "file:token-" + "A" * 43 + ".pem"]
)
def test_an_address_of_no_key_publishes_nothing(uri: str) -> None:
    rotated()
    with pytest.raises(TemporarilyUnavailableError):
        rotated(uri=uri or "-")
    assert Key.objects.count() == 1


def test_a_key_that_may_not_sign_is_not_published(monkeypatch: pytest.MonkeyPatch) -> None:
    uri, _ = backends.create(purpose="token")

    def denied(self: object, message: bytes, alg: str) -> bytes:
        raise backends.BackendError("no right to sign")

    monkeypatch.setattr("kms.backends.file._KeyFile.sign", denied)
    with pytest.raises(TemporarilyUnavailableError):
        rotated(uri=uri)
    assert not Key.objects.exists()


def test_a_key_that_could_sign_no_note_is_not_taken_for_the_log(settings: Settings) -> None:
    settings.KEY_ALGORITHM = "ES256"
    uri, _ = backends.create(purpose="token")
    with pytest.raises(InvalidStateError):
        rotate_key(purpose="audit", actor=ACTOR, now=NOW, uri=uri)
    assert not Key.objects.exists()
    assert rotated(uri=uri).algorithm == "ES256"


def test_a_key_on_record_is_not_taken_again() -> None:
    first = rotated()
    with pytest.raises(InvalidStateError):
        rotated(uri=first.uri)


def test_after_ninety_days_the_next_key_is_published_by_itself_and_once() -> None:
    first = rotated()
    assert rotate_due_keys(now=NOW + QUARTER - timedelta(seconds=1)) == 0
    assert rotate_due_keys(now=NOW + QUARTER) == 1
    assert rotate_due_keys(now=NOW + QUARTER + timedelta(minutes=10)) == 0
    second = Key.objects.exclude(pk=first.pk).get()
    assert second.introduction
    assert rotate_due_keys(now=NOW + 2 * QUARTER) == 1
    kinds = list(Event.objects.order_by("pk").values_list("kind", flat=True))
    assert kinds.count("kms.key.published") == 2


@pytest.mark.parametrize("ours", [True, False])
def test_KM_14_a_key_that_was_made_and_cannot_be_introduced_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, ours: bool
) -> None:
    rotated()
    by_hand, _ = backends.create(purpose="token")

    def away(*_arguments: object) -> str:
        raise TemporarilyUnavailableError

    monkeypatch.setattr("kms.services._introduction", away)
    with caplog.at_level(logging.ERROR), pytest.raises(TemporarilyUnavailableError):
        rotated(uri=None if ours else by_hand)
    # The operator knows of a key that they made by hand.
    assert caplog.text.count("was created but cannot be used: file:") == ours
    assert Key.objects.count() == 1


def test_zero_days_is_never(settings: Settings) -> None:
    rotated()
    settings.KEY_ROTATION_DAYS = 0
    assert rotate_due_keys(now=NOW + 100 * QUARTER) == 0


def test_a_home_that_fails_delays_rotation_and_nothing_else(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    first = rotated()
    settings.KEY_BACKEND = "nowhere"
    with caplog.at_level(logging.ERROR), pytest.raises(TemporarilyUnavailableError):
        rotate_due_keys(now=NOW + QUARTER)
    assert "token key is due for rotation" in caplog.text
    # A failed try may have left a key that no record names, so tries are an hour apart.
    assert rotate_due_keys(now=NOW + QUARTER + ROTATE_AGAIN - timedelta(seconds=1)) == 0
    with pytest.raises(TemporarilyUnavailableError):
        rotate_due_keys(now=NOW + QUARTER + ROTATE_AGAIN)
    assert signer(purpose="token", now=NOW + QUARTER).kid == first.kid
