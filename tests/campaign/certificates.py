"""Mutated certificates and key sets: no key counts unless it was certified."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from agentauth.protocol.errors import InvalidRequestError
from agentauth.protocol.key_set import read_key_set
from agentauth.protocol.keys import Signer
from agentauth.protocol.process_key_certificate import sign_certificate, verify_certificate
from agentauth.protocol.token import CertifiedKey, TokenKey
from tests.campaign.mutants import confused
from tests.campaign.signed import Claims, Mutant, Original, Rule, Signed, required, value
from tests.vectors import generate
from tests.vectors.example import HELD_KEY
from tests.vectors.generate import AGENT_P256, ISSUER, NOW, STRANGER, TOKEN_KEY

ROOTS: tuple[Signer, ...] = (TOKEN_KEY, AGENT_P256)
OWN = {signer.kid: signer.public for signer in ROOTS}
SERIAL = generate.identifier("certificate")
HOUR = 3600


def canonical(found: Any) -> bytes:
    """The canonical form of certificates, so that a mutant fails only for the rule it breaks."""
    return json.dumps(found, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def certificate(by: Signer, of: Signer = HELD_KEY, serial: str = SERIAL) -> str:
    return sign_certificate(
        by,
        of.public,
        issuer=ISSUER,
        serial=serial,
        instance="web-1:42",
        not_before=NOW,
        not_after=NOW + HOUR,
    )


def check(compact: str) -> object:
    return verify_certificate(compact, keys=OWN, expected_issuer=ISSUER)


def _originals() -> list[tuple[Original, Callable[[str], object]]]:
    others = [certificate(by, serial=generate.identifier("another")) for by in ROOTS] + [
        generate.token()
    ]
    return [(Original(certificate(by), by, others, canonical), check) for by in ROOTS]


def _kid(random: Random, header: Claims, claims: Claims) -> None:
    wrong = (
        "k2",
        "",
        "K1",
        HELD_KEY.kid,
        STRANGER.kid,
        f"../{header['kid']}",
        "k1\0",
        confused(random, "k1"),
    )
    header["kid"] = random.choice(wrong)


def _no_kid(random: Random, header: Claims, claims: Claims) -> None:
    del header["kid"]


def _member_of_the_header(random: Random, header: Claims, claims: Claims) -> None:
    header |= random.choice(
        ({"x": 1}, {"cty": "JWT"}, {"jwk": STRANGER.public.jwk}, {"jku": "https://evil.example"})
    )


def _subject(random: Random, header: Claims, claims: Claims) -> None:
    """A key that may not be certified, under its own thumbprint."""
    issuer = OWN[header["kid"]]
    subject = random.choice((AGENT_P256.public, issuer))
    claims |= {"cnf": {"jwk": subject.jwk}, "sub": subject.thumbprint}


def _later(seconds: int) -> Callable[[Random, Any], Any]:
    return lambda _random, right: right + seconds


RULES: dict[str, Rule] = {
    **required(
        "iss", "sub", "cnf", "purpose", "nbf", "exp", "max_token_seconds", "instance", "jti"
    ),
    "iss": value(
        "iss",
        ISSUER + "/",
        ISSUER.upper(),
        "https://evil.example",
        ISSUER.replace("https", "http"),
        "",
    ),
    "sub": value(
        "sub",
        STRANGER.public.thumbprint,
        "",
        lambda _, right: right + "=",
        lambda _, right: right.swapcase(),
    ),
    "cnf": value(
        "cnf",
        {},
        {"jkt": HELD_KEY.public.thumbprint},
        {"jwk": STRANGER.public.jwk},
        lambda _, right: right | {"jkt": "x"},
        lambda _, right: {"jwk": right["jwk"] | {"d": "AA"}},
        lambda _, right: {"jwk": right["jwk"] | {"kid": "k1"}},
        lambda _, right: {"jwk": right["jwk"] | {"kty": "EC"}},
    ),
    "the key that is certified": _subject,
    "purpose": value("purpose", "audit", "receipt", "Token", "token ", ""),
    "nbf": value("nbf", NOW + HOUR, NOW + HOUR + 1, NOW + HOUR - 86_401, -1, 2**53, True),
    "exp": value("exp", NOW, NOW - 1, 0, NOW + 86_401, 2**53 - 1, _later(-HOUR)),
    "max_token_seconds": value("max_token_seconds", 0, -1, 901, 10**9, True, "900"),
    "instance": value("instance", "", "a b", "é", "web/1", "x" * 129, "web-1:42\n"),
    "jti": value("jti", "", "x", SERIAL.upper().replace("-", ""), SERIAL + "\n", SERIAL[:-1]),
    "a claim that is not known": value("x", 1, None, {}),
    "a member of the header that is not known": _member_of_the_header,
    "kid": _kid,
    "no kid": _no_kid,
}

certificates = Signed("certificate", 8, InvalidRequestError, _originals(), RULES)


def member(of: Signer, **more: Any) -> dict[str, Any]:
    """A key as `/.well-known/jwks.json` shows it."""
    return {**of.public.jwk, "kid": of.kid, "use": "sig", "alg": of.alg, **more}


@dataclass(frozen=True)
class KeySets:
    """A key set with one wrong member: the whole set is refused, or that member does not count."""

    name: str = "key set"
    share: int = 4
    refusal: type[InvalidRequestError] = InvalidRequestError

    def attack(self, random: Random) -> tuple[Mutant, Callable[[Any], object]]:
        way = random.randrange(3)
        if way == 0:
            mutant, _ = certificates.attack(random)
            wrong = [member(HELD_KEY, certificate=mutant.value)]
            rule = f"certificate, {mutant.rule}"
        elif way == 1:
            rule, wrong = random.choice(list(self._members().items()))
        else:
            right = certificate(random.choice(ROOTS))
            rule, wrong = "no text", [member(HELD_KEY, certificate=confused(random, right))]
        keys = [*map(member, ROOTS), *wrong]
        random.shuffle(keys)
        return Mutant(rule, {"keys": keys}), certified

    @staticmethod
    def _members() -> dict[str, list[dict[str, Any]]]:
        good, by_held = certificate(TOKEN_KEY), certificate(HELD_KEY, STRANGER)
        return {
            "another key under it": [member(STRANGER, certificate=good)],
            "another key under its name": [member(STRANGER, kid=HELD_KEY.kid, certificate=good)],
            "under another name": [member(HELD_KEY, kid="k9", certificate=good)],
            "under a token key's name": [member(HELD_KEY, kid=TOKEN_KEY.kid, certificate=good)],
            "twice": [member(HELD_KEY, certificate=good)] * 2,
            "a private member": [member(HELD_KEY, certificate=good, d="AA")],
            "certified by a certified key": [member(STRANGER, certificate=by_held)],
            "certified by a stranger": [member(HELD_KEY, certificate=certificate(STRANGER))],
            "not a certificate": [member(HELD_KEY, certificate=generate.token())],
        }

    def valid(self) -> None:
        for by in ROOTS:
            certified(
                {"keys": [*map(member, ROOTS), member(HELD_KEY, certificate=certificate(by))]}
            )


def certified(key_set: object) -> dict[str, TokenKey]:
    """The keys that count because of a certificate.

    Raises InvalidRequestError if the set is refused or no key counts.
    """
    found = read_key_set(key_set, expected_issuer=ISSUER)
    held = {
        kid: key for kid, key in found.items() if isinstance(key, CertifiedKey) or kid not in OWN
    }
    if not held:
        raise InvalidRequestError("left out")
    return held


CERTIFIED = (certificates, KeySets())
