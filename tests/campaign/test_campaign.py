"""The campaign in process: no mutant passes, each gets its error, removed checks are noticed."""

import json
import os
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest

import approvals.passkeys
from agentauth.protocol import (
    agent_manifest,
    approval_receipt,
    dpop,
    encoding,
    jose,
    json_fields,
    key_set,
    keys,
    process_key_certificate,
    token,
    untrusted_text,
)
from agentauth.protocol.errors import InvalidRequestError, InvalidSignatureError
from agentauth.protocol.keys import PublicKey
from tests.campaign.engine import KINDS, SHOWN, attack, campaign, in_processes, timed
from tests.campaign.mutants import b64, unb64
from tests.vectors import generate
from tests.vectors.example import HELD_KEY

CAMPAIGN = os.environ.get("CAMPAIGN") == "1"
BY_NAME = {kind.name: kind for kind in KINDS}
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


@pytest.mark.long
@pytest.mark.slow
def test_DN_21_no_mutant_is_accepted_and_none_fails_otherwise(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A million mutants on all cores with CAMPAIGN=1; otherwise a sample with the same seed."""
    began = time.monotonic()
    if CAMPAIGN:
        result = in_processes(count=1_000_000, seed=0, processes=os.cpu_count() or 1)
    else:
        result = campaign(count=20_000, seed=0)
    with capsys.disabled():
        print(f"\n{timed(result, began)}")
    assert result.total >= (1_000_000 if CAMPAIGN else 20_000)
    assert not result.accepted[:SHOWN]
    assert not result.crashed[:SHOWN]


def test_the_campaign_reaches_every_kind_by_many_rules() -> None:
    rules = {kind.name: {attack(kind, seed)[0] for seed in range(400)} for kind in KINDS}
    assert {name for name, found in rules.items() if len(found) < 4} == set()


def test_the_other_spelling_of_an_es256_signature_is_the_same_proof() -> None:
    """ECDSA signatures (r, s) have twins (r, n − s) anyone can compute; both are spent together."""
    compact, access_token = generate.proof(generate.AGENT_P256), generate.token(generate.AGENT_P256)
    head, _, signature = compact.rpartition(".")
    raw = unb64(signature)
    twin = raw[:32] + (P256_ORDER - int.from_bytes(raw[32:], "big")).to_bytes(32, "big")
    found = {
        (proof.jkt, proof.jti)
        for proof in (
            dpop.verify_proof(
                text,
                expected_method="POST",
                expected_url=generate.URL,
                access_token=access_token,
                body=None,
                now=generate.NOW,
            )
            for text in (compact, f"{head}.{b64(twin)}")
        )
    }
    assert len(found) == 1


def _lax_base64(text: str) -> bytes:
    return unb64(text.rstrip("="))


def _any_typ(jws: Any, key: PublicKey, *, expected_typ: str) -> Any:
    key.verify(jws.signing_input, jws.signature, alg=str(jws.header["alg"]))
    return jose.VerifiedJws(jws.header, encoding.read_object(jws.payload))


def _any_typ_of_parts(
    header: Any,
    payload: bytes,
    signed: bytes,
    signature: bytes,
    key: PublicKey,
    *,
    expected_typ: str,
) -> Any:
    return _any_typ(
        jose.UnverifiedJws(header, payload, signed, signature), key, expected_typ=expected_typ
    ).claims


def _any_members(obj: Any, where: str, *, required: Any = (), optional: Any = ()) -> Any:
    if not isinstance(obj, dict) or not set(required) <= set(obj):
        raise InvalidRequestError(where)
    return obj


def _any_certificate(compact: str, **_expected: Any) -> process_key_certificate.Certificate:
    key = token.CertifiedKey(HELD_KEY.public, 0, 2**40, token.MAX_TOKEN_SECONDS)
    return process_key_certificate.Certificate("", "", key)


def _any_signature(self: Any, message: bytes, signature: bytes, *, alg: str) -> None:
    if len(signature) != keys.SIGNATURE_BYTES:
        raise InvalidSignatureError("length")


def _nothing(*args: Any, **options: Any) -> None:
    return None


def _first(value: Any, *args: Any, **options: Any) -> Any:
    return value


class _Equal(str):
    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = str.__hash__


_SAME = _Equal()


# The check removed from the project, and the kind of mutant that must then be accepted.
MISSING: Mapping[str, tuple[str, Any, str, Any]] = {
    "ath": ("proof", dpop, "_check_access_token", _nothing),
    "htu": ("proof", dpop, "_check_url", _nothing),
    "iat of a proof": ("proof", dpop, "_check_time", _nothing),
    "bh": ("proof", dpop, "_check_body", _nothing),
    "typ of a proof": ("proof", dpop, "proved_claims", _any_typ_of_parts),
    "typ of a token": ("token", token, "verify_jws", _any_typ),
    "typ of a manifest": ("manifest", agent_manifest, "verify_jws", _any_typ),
    "typ of a receipt": ("receipt", approval_receipt, "verify_jws", _any_typ),
    "the signature itself": ("token", PublicKey, "verify", _any_signature),
    "base64url in one form": ("token", jose, "b64u_decode", _lax_base64),
    "crit, b64 and zip": ("token", jose, "_REFUSED_HEADERS", frozenset()),
    "private members": ("manifest", keys, "_PRIVATE_MEMBERS", frozenset()),
    "no member twice": ("body", encoding, "_DECODER", json.JSONDecoder()),
    "members that are not known": ("body", json_fields, "members", _any_members),
    "life of a token": ("token", token, "MAX_TOKEN_SECONDS", 10**12),
    "cnf": ("token", token, "_key_thumbprint", lambda _: "x" * 43),
    "characters of a name": ("manifest", untrusted_text, "_check_readable", _first),
    "life of a manifest": ("manifest", agent_manifest, "_check_times", _nothing),
    "client data of a receipt": ("receipt", approval_receipt, "_check_client_data", _nothing),
    "life of a certificate": (
        "certificate",
        process_key_certificate,
        "MAX_CERTIFICATE_SECONDS",
        10**12,
    ),
    "life of certified tokens": (
        "certificate",
        process_key_certificate,
        "MAX_TOKEN_SECONDS",
        10**12,
    ),
    "one form of a certificate": (
        "certificate",
        process_key_certificate,
        "signing_input",
        lambda *_, **__: _SAME,
    ),
    "claims of a certificate": ("certificate", process_key_certificate, "members", _any_members),
    "purpose of a certificate": (
        "certificate",
        process_key_certificate,
        "CERTIFIED_PURPOSE",
        _SAME,
    ),
    "process of a certificate": (
        "certificate",
        process_key_certificate,
        "_INSTANCE",
        re.compile(r".*", re.DOTALL),
    ),
    "serial of a certificate": ("certificate", process_key_certificate, "is_id", bool),
    "the certificate of a key": ("key set", key_set, "verify_certificate", _any_certificate),
    "the text that was read": ("receipt", approval_receipt, "consent_sha256", lambda _: _SAME),
    "client data": ("assertion", approvals.passkeys, "_check_client_data", _nothing),
    "client data of a registration": (
        "registration",
        approvals.passkeys,
        "_check_client_data",
        _nothing,
    ),
    "the key of a registration": (
        "registration",
        approvals.passkeys,
        "_check_public_key",
        _nothing,
    ),
    "the proof in verify": ("verify request", dpop, "_check_url", _nothing),
}


@pytest.mark.parametrize(("kind", "where", "name", "lax"), MISSING.values(), ids=MISSING)
def test_DN_21_the_campaign_finds_a_check_that_is_missing(
    kind: str, where: Any, name: str, lax: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (where, *_importers(where, name)):
        monkeypatch.setattr(module, name, lax)
    faults = (attack(BY_NAME[kind], seed)[1] for seed in range(6000))
    assert any(fault == "accepted" for fault in faults)


def _importers(where: Any, name: str) -> list[Any]:
    """Modules of the protocol that imported this function by name."""
    import sys

    own = getattr(where, name)
    loaded = [
        module for path, module in sys.modules.items() if path.startswith("agentauth.protocol")
    ]
    return [module for module in loaded if module is not where and vars(module).get(name) is own]
