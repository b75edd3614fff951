"""A process key's certificate is published, verified at each read, limited per host and recorded.

It ends at once when it or the key that signed it is revoked.
"""

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
import time_machine
from django.db import IntegrityError, OperationalError, transaction
from pytest_django.fixtures import Settings
from rest_framework.test import APIRequestFactory

from agentauth.protocol.errors import InvalidStateError, NotFoundError, TemporarilyUnavailableError
from agentauth.protocol.key_set import read_key_set
from agentauth.protocol.keys import PrivateKey
from agentauth.protocol.token import CertifiedKey
from audit.models import Event
from kms.jwks_view import JwksView
from kms.lifetimes import PUBLISHED_BEFORE_USE, TOKEN_OVERLAP
from kms.models import KeyCertificate
from kms.process_key_certificates import (
    CERTIFIED_FOR,
    MOST_PER_PROCESS,
    certify,
    revoke_certificate,
    token_jwks,
    token_keys,
)
from kms.services import disable_key, promote_due_keys, rotate_key
from kms.tests.test_keys import ACTOR, NOW

pytestmark = pytest.mark.django_db
PROCESS_KEY = PrivateKey.generate()
KID = PROCESS_KEY.public.thumbprint


@pytest.fixture(autouse=True)
def token_kid() -> str:
    return rotate_key(purpose="token", actor=ACTOR, now=NOW).kid


@pytest.fixture(autouse=True)
def clock() -> Iterator[time_machine.Traveller]:
    with time_machine.travel(NOW, tick=False) as traveller:
        yield traveller


def certify_key(key: PrivateKey = PROCESS_KEY, now: datetime = NOW) -> KeyCertificate:
    return certify(key.public, process=7, now=now)


def fetch_key_set() -> dict[str, Any]:
    response = JwksView.as_view()(APIRequestFactory().get("/.well-known/jwks.json"))
    response.render()
    found: dict[str, Any] = json.loads(response.content)
    return found


def test_certified_key_is_published_and_readers_find_what_we_find(
    settings: Settings, token_kid: str
) -> None:
    row = certify_key()
    own, held = fetch_key_set()["keys"]
    assert (own["kid"], held["kid"], held["certificate"]) == (token_kid, KID, row.jws)
    assert set(held) == {"kty", "crv", "x", "kid", "use", "alg", "certificate"}
    keys = token_keys(now=NOW)
    assert keys == read_key_set(fetch_key_set(), expected_issuer=settings.ISSUER)
    begin = int(NOW.timestamp())
    assert keys[KID] == CertifiedKey(PROCESS_KEY.public, begin, begin + 7200, 900)
    assert row.usable_from == NOW + PUBLISHED_BEFORE_USE
    [event] = Event.objects.filter(kind="kms.key.certified")
    assert (event.data["serial"], event.data["kid"], event.data["issuer_kid"]) == (
        str(row.serial),
        KID,
        token_kid,
    )


def test_JK_18_a_revoked_certificate_leaves_at_once_for_good(token_kid: str) -> None:
    serial = str(certify_key().serial)
    revoke_certificate(serial=serial, actor=ACTOR, now=NOW)
    assert KID not in token_keys(now=NOW)
    assert [each["kid"] for each in fetch_key_set()["keys"]] == [token_kid]
    kinds = Event.objects.filter(kind__contains="certif").values_list("kind", flat=True)
    assert sorted(kinds) == ["kms.key.certificate_revoked", "kms.key.certified"]
    with pytest.raises(InvalidStateError):
        revoke_certificate(serial=serial, actor=ACTOR, now=NOW)
    for odd in ("nothing", "", "01940000-0000-7000-8000-00000000000a"):
        with pytest.raises(NotFoundError):
            revoke_certificate(serial=odd, actor=ACTOR, now=NOW)
    with pytest.raises(IntegrityError), transaction.atomic():
        KeyCertificate.objects.update(state="certified", revoked_at=None)


def test_JK_18_a_disabled_key_takes_all_it_certified_with_it(token_kid: str) -> None:
    certify_key()
    disable_key(kid=token_kid, actor=ACTOR, now=NOW, even_last=True)
    assert token_keys(now=NOW) == {}
    assert token_jwks(now=NOW) == {"keys": []}


def test_JK_14_certificate_ends_with_the_retired_key_that_signed_it() -> None:
    rotate_key(purpose="token", actor=ACTOR, now=NOW)
    certify_key()
    switch = NOW + PUBLISHED_BEFORE_USE
    promote_due_keys(now=switch)
    assert KID in token_keys(now=switch + TOKEN_OVERLAP - timedelta(seconds=1))
    assert KID not in token_keys(now=switch + TOKEN_OVERLAP)


def test_an_ended_certificate_leaves_the_set_and_later_the_table() -> None:
    certify_key()
    assert KID in token_keys(now=NOW + CERTIFIED_FOR - timedelta(seconds=1))
    assert KID not in token_keys(now=NOW + CERTIFIED_FOR)
    certify_key(PrivateKey.generate(), NOW + CERTIFIED_FOR + timedelta(hours=23))
    assert KeyCertificate.objects.count() == 2
    certify_key(PrivateKey.generate(), NOW + CERTIFIED_FOR + timedelta(hours=25))
    assert not KeyCertificate.objects.filter(kid=KID).exists()


@pytest.mark.parametrize("change", ["text", "kid", "issuer"])
def test_KM_10_changed_certificate_row_certifies_nothing(change: str, token_kid: str) -> None:
    row, stranger = certify_key(), PrivateKey.generate().public
    if change == "text":
        KeyCertificate.objects.update(jws=row.jws[:-4] + "AAAA")
    elif change == "kid":
        KeyCertificate.objects.update(kid=stranger.thumbprint)
    else:
        other = rotate_key(purpose="receipt", actor=ACTOR, now=NOW)
        KeyCertificate.objects.update(issuer=other)
    assert set(token_keys(now=NOW)) == {token_kid}
    assert [each["kid"] for each in token_jwks(now=NOW)["keys"]] == [token_kid]


def test_certified_keys_of_a_host_are_limited(settings: Settings) -> None:
    settings.WEB_CONCURRENCY = 2
    keys = [PrivateKey.generate() for _ in range(2 * MOST_PER_PROCESS + 1)]
    rows = [certify_key(key) for key in keys[:-1]]
    with pytest.raises(TemporarilyUnavailableError):
        certify_key(keys[-1])
    # Certificates of another host, and revoked or ended ones, do not count.
    KeyCertificate.objects.filter(pk=rows[0].pk).update(instance="elsewhere:1")
    certify_key(keys[-1])
    revoke_certificate(serial=str(rows[1].serial), actor=ACTOR, now=NOW)
    certify_key(PrivateKey.generate())
    certify_key(PrivateKey.generate(), NOW + CERTIFIED_FOR)


def test_AU_1_what_cannot_be_recorded_is_not_certified(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(**_: object) -> None:
        raise OperationalError("disk full")

    monkeypatch.setattr("kms.process_key_certificates.record", failing)
    with pytest.raises(OperationalError):
        certify_key()
    assert not KeyCertificate.objects.exists()


def test_KM_14_without_a_key_nothing_is_certified(token_kid: str) -> None:
    disable_key(kid=token_kid, actor=ACTOR, now=NOW, even_last=True)
    with pytest.raises(TemporarilyUnavailableError):
        certify_key()
