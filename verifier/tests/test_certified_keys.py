"""Tokens of certified keys at the endpoints: valid within the certificate, forged beyond it."""

from collections.abc import Callable
from typing import Any

import pytest
import time_machine
from django.db import transaction
from django.utils import timezone

from agentauth.protocol.jose import sign_compact
from agentauth.protocol.keys import LocalSigner, PrivateKey
from agentauth.protocol.process_key_certificate import CERTIFICATE_TYP, sign_certificate
from agentauth.protocol.token import sign_token
from kms.models import Key, KeyCertificate
from kms.process_key_certificates import certify, revoke_certificate
from kms.services import disable_key, signer
from registry.models import Token
from verifier.models import StateChange
from verifier.tests.scene import LOOK, SYSTEM, Scene, assert_refused, latest_claims, verdict

pytestmark = pytest.mark.django_db


def held(**changed: Any) -> LocalSigner:
    """A certified key; `changed` replaces what its certificate says."""
    private_key = PrivateKey.generate()
    row = certify(private_key.public, process=1, now=timezone.now())
    if changed:
        values: dict[str, Any] = {
            "issuer": "http://localhost:8000",
            "serial": str(row.serial),
            "instance": row.instance,
            "not_before": int(row.not_before.timestamp()),
            "not_after": int(row.not_after.timestamp()),
        }
        by = signer(purpose="token", now=timezone.now())
        row.jws = sign_certificate(by, private_key.public, **(values | changed))
        row.save()
    return LocalSigner(private_key)


def asked(place: Scene, by: LocalSigner) -> str:
    """The verdict on the scene's own token, signed by this key."""
    place.token()
    token = sign_token(latest_claims(place), by)
    return verdict(assert_refused(place, place.body(LOOK, token=token)))


def test_KM_10_token_of_a_certified_key_is_valid_at_every_endpoint(place: Scene) -> None:
    by = held()
    place.token()
    token = sign_token(latest_claims(place), by)
    assert place.ask(LOOK, token=token)["valid"] is True
    assert place.ask(LOOK, token=token)["valid"] is True


@pytest.mark.parametrize(
    "changed",
    [
        lambda _: {"issuer": "https://other.example"},
        lambda _: {"max_token_seconds": 899},
        lambda now: {"not_after": now + 899},
        lambda now: {"not_before": now + 60},
        lambda now: {"not_before": now - 7200, "not_after": now - 1},
    ],
    ids=["wrong issuer", "longer token life", "outlived", "not yet valid", "expired"],
)
def test_KM_10_beyond_its_certificate_a_key_proves_nothing(
    place: Scene, changed: Callable[[int], dict[str, Any]]
) -> None:
    by = held(**changed(int(timezone.now().timestamp())))
    assert asked(place, by) == "invalid_token/unknown"


def test_KM_10_missing_or_wrong_kind_of_certificate_proves_nothing(
    place: Scene,
) -> None:
    assert asked(place, LocalSigner(PrivateKey.generate())) == "invalid_token/unknown"
    by = held()
    row = KeyCertificate.objects.get(kid=by.kid)
    KeyCertificate.objects.filter(pk=row.pk).update(jws=place.token())
    assert asked(place, by) == "invalid_token/unknown"


def test_KM_10_a_certified_key_certifies_no_other(place: Scene) -> None:
    middle, last = held(), held()
    row = KeyCertificate.objects.get(kid=last.kid)
    chained = sign_certificate(
        middle,
        last.public,
        issuer="http://localhost:8000",
        serial=str(row.serial),
        instance=row.instance,
        not_before=int(row.not_before.timestamp()),
        not_after=int(row.not_after.timestamp()),
    )
    KeyCertificate.objects.filter(pk=row.pk).update(jws=chained)
    assert asked(place, last) == "invalid_token/unknown"
    assert sign_compact({}, middle, typ=CERTIFICATE_TYP)


@pytest.mark.parametrize("end", ["revoked", "disabled"])
def test_JK_18_what_is_taken_away_is_refused_although_it_was_seen_before(
    place: Scene, end: str
) -> None:
    by = held()
    place.token()
    token = sign_token(latest_claims(place), by)
    assert place.ask(LOOK, token=token)["valid"] is True
    if end == "revoked":
        serial = str(KeyCertificate.objects.get(kid=by.kid).serial)
        revoke_certificate(serial=serial, actor=SYSTEM, now=timezone.now())
    else:
        disable_key(
            kid=Key.objects.get(purpose="token").kid,
            actor=SYSTEM,
            now=timezone.now(),
            even_last=True,
        )
    assert verdict(assert_refused(place, place.body(LOOK, token=token))) == "invalid_token/unknown"


def test_JK_20_a_kid_of_a_token_is_looked_up_among_the_known_alone(place: Scene) -> None:
    for kid in ("../../etc/passwd", "' OR 1=1 --", "vault:key", "%00"):
        assert asked(place, LocalSigner(PrivateKey.generate(), kid)) == "invalid_token/unknown"


def test_an_end_is_an_end_for_certified_keys_too(place: Scene) -> None:
    place.token()
    token = sign_token(latest_claims(place), held())
    expires_at = Token.objects.latest("issued_at").expires_at
    with time_machine.travel(expires_at, tick=False):
        assert (
            verdict(assert_refused(place, place.body(LOOK, token=token))) == "invalid_token/expired"
        )


def test_certificate_change_is_published_once_and_not_if_rolled_back(place: Scene) -> None:
    def said() -> list[tuple[str, str]]:
        return list(StateChange.objects.order_by("id").values_list("subject", "subject_id"))

    assert place.agent
    before = said()
    by = held()
    assert said() == [*before, ("key", by.kid)]
    serial = str(KeyCertificate.objects.get(kid=by.kid).serial)
    with transaction.atomic():
        revoke_certificate(serial=serial, actor=SYSTEM, now=timezone.now())
        assert said() == [*before, ("key", by.kid), ("key", by.kid)]
        transaction.set_rollback(True)
    assert said() == [*before, ("key", by.kid)]
