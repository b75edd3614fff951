"""Mutated compact signed objects: changed as they are, or broken and signed again.

The kinds are proofs, tokens, manifests and receipts.
"""

import hmac
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from agentauth.protocol.errors import AgentAuthError
from agentauth.protocol.keys import Signer
from tests.campaign.mutants import (
    altered,
    b64,
    broken_json,
    changed_bytes,
    changed_text,
    confused,
    spot,
    unb64,
)

Claims = dict[str, Any]
# Breaks one requirement in header or claims, which are the rule's own copies.
Rule = Callable[[Random, Claims, Claims], None]

# The order of each group: add it to S, or subtract S from it, for another spelling of one
# signature.
ED25519_ORDER = 2**252 + 27742317777372353535851937790883648493
# An R of small order, with which some readers accept one Ed25519 signature for many messages.
SMALL_R = (1).to_bytes(32, "little")
TYPES = (
    "at+jwt", "dpop+jwt", "agent-manifest+jwt", "agent-key+jwt", "approval-receipt+jwt",
    "key-certificate+jwt",
    "JWT", "jwt", "", "application/{}", "{} ", "{}\n", "X{}", "{}+x",
)  # fmt: skip
ALGORITHMS = (
    "none",
    "None",
    "NONE",
    "HS256",
    "HS512",
    "RS256",
    "PS256",
    "ES384",
    "ES512",
    "Ed448",
    "eddsa",
    "",
    "A" * 300,
)


@dataclass(frozen=True)
class Mutant:
    """What the check receives, and the rule that made it."""

    rule: str
    value: Any


@dataclass(frozen=True)
class Original:
    """A valid object, its signer, and other valid objects whose parts can be swapped in."""

    compact: str
    signer: Signer
    others: Sequence[str]
    # Where JSON must be canonical, an object signed again must be canonical too.
    write: Callable[[Any], bytes] = lambda found: json.dumps(found).encode()

    def parts(self) -> tuple[Claims, Claims]:
        header, claims, _ = self.compact.split(".")
        return json.loads(unb64(header)), json.loads(unb64(claims))


def signed(signer: Signer, header: bytes, claims: bytes) -> str:
    message = f"{b64(header)}.{b64(claims)}"
    return f"{message}.{b64(signer.sign(message.encode()))}"


def unsigned_mutant(random: Random, original: Original) -> Mutant:
    """Some byte of header, claims or signature changes, with no new signature.

    The twin (r, n − s) of an ECDSA signature is left out, since it is no forgery. Anyone who has a
    proof can compute it and gains nothing: a proof is spent by its key and `jti`, never by its
    bytes (`test_the_other_spelling_of_an_es256_signature_is_the_same_proof`).
    """
    while True:
        ways = (_text, _segment, _moved, _claims_edited, _signature)
        rule, compact = random.choice(ways)(random, original)
        if compact != original.compact and compact not in original.others:
            return Mutant(f"unsigned: {rule}", compact)


def _text(random: Random, original: Original) -> tuple[str, str]:
    return changed_text(random, original.compact)


def _segment(random: Random, original: Original) -> tuple[str, str]:
    """Change the bytes of one part and encode them again in valid base64url."""
    parts = original.compact.split(".")
    index = random.randrange(3)
    parts[index] = b64(changed_bytes(random, unb64(parts[index])))
    return "bytes of a part", ".".join(parts)


def _moved(random: Random, original: Original) -> tuple[str, str]:
    parts, other = original.compact.split("."), random.choice(original.others).split(".")
    index = random.randrange(3)
    way = random.randrange(5)
    if way == 0:
        parts[index] = other[index]
    elif way == 1:
        parts[index], parts[index - 1] = parts[index - 1], parts[index]
    elif way == 2:
        parts.insert(index, random.choice(parts))
    elif way == 3:
        del parts[index]
    else:
        parts[index] = ""
    return "parts moved", ".".join(parts)


def _claims_edited(random: Random, original: Original) -> tuple[str, str]:
    parts = original.compact.split(".")
    index = random.randrange(2)
    found = json.loads(unb64(parts[index]))
    name = random.choice(list(found))
    found[name] = random.choice((altered, confused))(random, found[name])
    parts[index] = b64(json.dumps(found).encode())
    return "claims edited, signature kept", ".".join(parts)


def _signature(random: Random, original: Original) -> tuple[str, str]:
    head, _, text = original.compact.rpartition(".")
    raw = unb64(text)
    scalar = int.from_bytes(raw[32:], "little")
    made = random.choice(
        (
            bytes(64),
            b"\xff" * 64,
            raw[32:] + raw[:32],
            raw[:32] + (scalar + ED25519_ORDER).to_bytes(33, "little")[:32],
            SMALL_R + raw[32:],
            raw[:32] + bytes(32),
            b"\x30\x44\x02\x20" + raw[:32] + b"\x02\x20" + raw[32:],
            raw + raw,
            raw[:63],
            random.randbytes(64),
        )
    )
    return "another signature", f"{head}.{b64(made)}"


def broken_and_signed(random: Random, original: Original, rules: dict[str, Rule]) -> Mutant:
    """Break one requirement and sign again with the right key, so only that rule can refuse it."""
    name = random.choice(
        [*HEADER_RULES, *rules, "alg HS256", "broken JSON", "broken header JSON", "another's key"]
    )
    header, claims = original.parts()
    signer = original.signer
    if name == "alg HS256":
        return Mutant(f"signed: {name}", _mac(random, original, header, claims))
    head, body = original.write(header), original.write(claims)
    if name == "broken JSON":
        rule, body = broken_json(random, claims)
        return Mutant(f"signed: claims, {rule}", signed(signer, head, body))
    if name == "broken header JSON":
        rule, head = broken_json(random, header)
        return Mutant(f"signed: header, {rule}", signed(signer, head, body))
    if name == "another's key":
        return Mutant(f"signed: {name}", signed(_Stranger(signer), head, body))
    (HEADER_RULES | rules)[name](random, header, claims)
    return Mutant(f"signed: {name}", signed(signer, original.write(header), original.write(claims)))


def _mac(random: Random, original: Original, header: Claims, claims: Claims) -> str:
    """Use the public key as an HMAC secret: the classic attack on readers that trust `alg`."""
    signer = original.signer
    raw = unb64(signer.public.x)
    key = random.choice(
        (raw, signer.public.x.encode(), json.dumps(signer.public.jwk).encode(), b"")
    )
    header["alg"] = random.choice(("HS256", signer.alg))
    message = f"{b64(original.write(header))}.{b64(original.write(claims))}"
    return f"{message}.{b64(hmac.digest(key, message.encode(), 'sha256'))}"


class _Stranger:
    """Signs with its own key under another key's name."""

    def __init__(self, signer: Signer) -> None:
        from tests.vectors.generate import STRANGER

        self.alg = STRANGER.alg
        self.kid = signer.kid
        self.public = signer.public
        self.sign = STRANGER.sign


def drop(name: str) -> Rule:
    return lambda _random, _header, claims: claims.__delitem__(name)


def confuse(name: str) -> Rule:
    def rule(random: Random, header: Claims, claims: Claims) -> None:
        claims[name] = confused(random, claims[name])

    return rule


def value(name: str, *choices: Any) -> Rule:
    """Replace the claim with a wrong value; callables get the random source and the right value."""

    def rule(random: Random, header: Claims, claims: Claims) -> None:
        chosen = random.choice(choices)
        claims[name] = chosen(random, claims.get(name)) if callable(chosen) else chosen

    return rule


def required(*names: str) -> dict[str, Rule]:
    """Rules that remove each of these claims, and that give each a wrong type."""
    return {f"no {name}": drop(name) for name in names} | {
        f"{name} of another type": confuse(name) for name in names
    }


def _typ(random: Random, header: Claims, claims: Claims) -> None:
    right = header["typ"]
    wrong = [each.format(right) for each in TYPES if each.format(right) != right]
    header["typ"] = random.choice((random.choice(wrong), right.upper(), confused(random, right)))


def _alg(random: Random, header: Claims, claims: Claims) -> None:
    other = "ES256" if header["alg"] == "EdDSA" else random.choice(("EdDSA", "Ed25519"))
    header["alg"] = random.choice((random.choice(ALGORITHMS), other, confused(random, "x")))


def _without(name: str) -> Rule:
    return lambda _random, header, _claims: header.__delitem__(name)


def _extension(random: Random, header: Claims, claims: Claims) -> None:
    header |= random.choice(
        (
            {"crit": ["exp"]},
            {"crit": ["x"], "x": 1},
            {"crit": []},
            {"crit": None},
            {"b64": False},
            {"b64": True, "crit": ["b64"]},
            {"zip": "DEF"},
        )
    )


HEADER_RULES: dict[str, Rule] = {
    "typ": _typ,
    "no typ": _without("typ"),
    "alg": _alg,
    "no alg": _without("alg"),
    "an extension that is not known": _extension,
}


@dataclass(frozen=True)
class Signed:
    """One kind of signed object: originals, ways to break them, the check that must refuse."""

    name: str
    share: int
    refusal: type[AgentAuthError] | tuple[type[AgentAuthError], ...]
    originals: Sequence[tuple[Original, Callable[[str], object]]]
    rules: dict[str, Rule]
    # Mutants of what the object is checked against; the object itself stays unchanged.
    around: Callable[[Random, int], tuple[Mutant, Callable[[Any], object]]] | None = None

    def attack(self, random: Random) -> tuple[Mutant, Callable[[Any], object]]:
        """A mutant, and the check that must refuse it."""
        index = spot(random, "x" * len(self.originals))
        original, check = self.originals[index]
        way = random.random()
        if self.around is not None and way < 0.15:
            return self.around(random, index)
        if way < 0.6:
            return unsigned_mutant(random, original), check
        return broken_and_signed(random, original, self.rules), check

    def valid(self) -> None:
        """Raises if an original is refused: a check that accepts nothing would pass everything."""
        for original, check in self.originals:
            check(original.compact)
