"""Mutated passkey ceremonies: changed after signing, or signed with one requirement broken."""

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import cbor2

from agentauth.protocol.errors import InvalidAssertionError
from approvals.passkeys import verify_assertion, verify_registration
from approvals.tests.authenticator import AT, BE, BS, ED, UP, UV, Authenticator
from tests.campaign.mutants import b64, broken_json, changed_bytes, changed_text, confused, unb64
from tests.campaign.signed import Mutant

RP_ID, ORIGIN = "localhost", "http://localhost:8000"
CHALLENGE = hashlib.sha256(b"campaign").digest()
HANDLE = b"alice-handle"
OPTIONS = {"challenge": b64(CHALLENGE), "user": {"id": b64(HANDLE)}}
COUNTER = 6
ORIGINS: tuple[Any, ...] = (
    "https://evil.example",
    "http://localhost",
    "https://localhost:8000",
    "http://localhost:8000/",
    "http://LOCALHOST:8000",
    "http://sub.localhost:8000",
    "http://localhost:8001",
    "http://localhost:8000.evil.example",
    "null",
    "",
    None,
    1,
    ["x"],
    "http://127.0.0.1:8000",
    "http://user@localhost:8000",
    " http://localhost:8000",
    "http://loсalhost:8000",
    True,
    {},
)
EMBEDDED = (
    {"crossOrigin": True},
    {"crossOrigin": 1},
    {"crossOrigin": "false"},
    {"crossOrigin": None},
    {"crossOrigin": 0},
    {"topOrigin": ORIGIN},
    {"topOrigin": None},
    {"topOrigin": "https://evil.example"},
)
BINDINGS: tuple[Any, ...] = (
    {"status": "present", "id": "x"},
    {"status": "x"},
    {},
    "supported",
    1,
    [],
)


def _challenge(random: Random) -> Any:
    right = b64(CHALLENGE)
    return random.choice(
        (
            ...,
            "",
            None,
            1,
            [right],
            right + "=",
            right + "A",
            right[:-1],
            right.lower(),
            CHALLENGE.hex(),
            right + "\n",
            b64(random.randbytes(32)),
            b64(changed_bytes(random, CHALLENGE)),
        )
    )


def _flags(random: Random, extra: int) -> int:
    """User not present or not verified, backed up but not eligible, or flags for absent data."""
    return extra | random.choice((0, UP, UV, UP | UV | BS, UP | BE, UP | UV | ED))


def _client(random: Random, kind: str) -> dict[str, Any]:
    """Client data in which one member differs from what the ceremony asked for."""
    other = "webauthn.create" if kind == "webauthn.get" else "webauthn.get"
    return random.choice(
        (
            {"kind": random.choice((other, "payment.get", "", None, 1, kind.upper(), kind + " "))},
            {"challenge": _challenge(random)},
            {"origin": random.choice(ORIGINS)},
            random.choice(EMBEDDED),
            {"tokenBinding": random.choice(BINDINGS)},
        )
    )


@dataclass
class Assertions:
    """Responses of `navigator.credentials.get()` by three keys, one per algorithm."""

    name: str = "assertion"
    share: int = 12
    refusal: type[InvalidAssertionError] = InvalidAssertionError
    devices: list[Authenticator] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for alg in (-7, -8, -257):
            device = Authenticator(alg=alg, user_handle=HANDLE, sign_count=COUNTER)
            self.devices.append(device)
            self.answers.append(device.assertion(OPTIONS))

    def check(self, device: Authenticator) -> Callable[[Any], object]:
        public_key = device.public_key

        def check(credential: Any) -> object:
            return verify_assertion(
                credential=credential,
                expected_challenge=CHALLENGE,
                rp_id=RP_ID,
                origin=ORIGIN,
                public_key=public_key,
                sign_count=COUNTER,
                expected_credential_id=device.credential_id,
                expected_user_handle=HANDLE,
                expected_backup_eligible=None,
            )

        return check

    def attack(self, random: Random) -> tuple[Mutant, Callable[[Any], object]]:
        index = random.randrange(3)
        if random.random() < 0.6:
            blobs = ("clientDataJSON", "authenticatorData", "signature")
            return unsigned(random, self.answers[index], blobs, self.answers), self.check(
                self.devices[index]
            )
        # An RSA signature takes a hundred times longer and tests nothing more: every requirement is
        # checked before the signature.
        device = self.devices[index % 2]
        return broken_assertion(random, device, OPTIONS, stored=COUNTER), self.check(device)

    def valid(self) -> None:
        for device, answer in zip(self.devices, self.answers, strict=True):
            self.check(device)(answer)


def broken_assertion(
    random: Random, device: Authenticator, options: dict[str, Any], *, stored: int
) -> Mutant:
    """Signed by the right key with one requirement broken; `stored` is the server's counter."""
    name = random.choice(
        (
            "client data",
            "flags",
            "rp id",
            "counter",
            "leftover",
            "client JSON",
            "another's key",
            "key data",
        )
    )
    device.sign_count = stored
    changes: dict[str, Any] = {}
    if name == "client data":
        changes = _client(random, "webauthn.get")
    elif name == "flags":
        changes = {"flags": _flags(random, 0)}
    elif name == "rp id":
        changes = {
            "rp_id": random.choice(
                ("evil.example", "localhost.", "LOCALHOST", "sub.localhost", ORIGIN)
            )
        }
    elif name == "counter":
        # The authenticator signs this plus one: at most the stored counter.
        device.sign_count = random.randrange(stored + 1) - 1
    elif name == "leftover":
        changes = {"tail": random.randbytes(1 + random.randrange(30))}
    elif name == "client JSON":
        good = {
            "type": "webauthn.get",
            "challenge": options["challenge"],
            "origin": ORIGIN,
            "crossOrigin": False,
        }
        # The authenticator takes an empty text to mean its default.
        changes = {"client_bytes": broken_json(random, good)[1] or b" "}
    elif name == "another's key":
        stranger = Authenticator(
            credential_id=device.credential_id, user_handle=device.user_handle, sign_count=stored
        )
        return Mutant(f"signed: {name}", stranger.assertion(options))
    else:
        changes = {
            "flags": UP | UV | AT | random.choice((0, ED)),
            "tail": random.randbytes(random.randrange(80)),
        }
    return Mutant(f"signed: {name}", device.assertion(options, **changes))


def unsigned(
    random: Random, answer: dict[str, Any], blobs: tuple[str, ...], others: list[dict[str, Any]]
) -> Mutant:
    """The response as a browser would send it, changed after the passkey signed.

    Not mutated, because they are not signed and nothing depends on them: `authenticatorAttachment`,
    `clientExtensionResults`, `transports`; nor is `userHandle` removed, which the ceremony does not
    need.
    """
    response = dict(answer["response"])
    name = random.choice(blobs)
    way = random.choice(
        ("bytes", "bytes", "text", "text", "type", "gone", "moved", "outer", "handle")
    )
    if way == "bytes":
        response[name] = b64(changed_bytes(random, unb64(response[name])))
    elif way == "text":
        response[name] = changed_text(random, response[name])[1]
    elif way == "type":
        response[name] = confused(random, response[name])
    elif way == "gone":
        del response[name]
    elif way == "moved":
        parts = [
            each["response"][other]
            for each in others
            for other in blobs
            if each["response"][other] != response[name]
        ]
        response[name] = random.choice(parts)
    elif way == "handle" and "signature" in blobs:
        wrong: Any = (
            b64(b"bob-handle"),
            "",
            1,
            [],
            b64(HANDLE) + "=",
            b64(HANDLE).lower(),
            b64(HANDLE) * 9,
            {},
            True,
        )
        response["userHandle"] = random.choice(wrong)
    else:
        return Mutant("unsigned: outer members", _outer(random, answer))
    return Mutant(
        f"unsigned: {way} of {name if way != 'handle' else 'userHandle'}",
        answer | {"response": response},
    )


def _outer(random: Random, answer: dict[str, Any]) -> Any:
    name = random.choice(("id", "rawId", "type", "response"))
    right = answer[name]
    wrong = [..., confused(random, right)]
    if isinstance(right, str):
        wrong.append(changed_text(random, right)[1])
    chosen = random.choice(wrong)
    changed = (
        {key: each for key, each in answer.items() if key != name}
        if chosen is ...
        else answer | {name: chosen}
    )
    return random.choice((changed, changed, changed, confused(random, answer)))


@dataclass
class Registrations:
    """Responses of `navigator.credentials.create()`.

    With attestation `packed` the new key signs its own data, so every byte counts. With `none`
    nothing is signed: there only what the ceremony asks for is broken, since another good key is
    another good answer.
    """

    name: str = "registration"
    share: int = 5
    refusal: type[InvalidAssertionError] = InvalidAssertionError
    devices: list[Authenticator] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for alg in (-7, -8):
            device = Authenticator(alg=alg)
            self.devices.append(device)
            self.answers.append(packed(device, OPTIONS))

    def attack(self, random: Random) -> tuple[Mutant, Callable[[Any], object]]:
        index = random.randrange(2)
        if random.random() < 0.6:
            blobs = ("clientDataJSON", "attestationObject")
            return unsigned(random, self.answers[index], blobs, self.answers), check_registration
        return broken_registration(random, self.devices[index], OPTIONS), check_registration

    def valid(self) -> None:
        for device, answer in zip(self.devices, self.answers, strict=True):
            check_registration(answer)
            check_registration(device.registration(OPTIONS))


def broken_registration(random: Random, device: Authenticator, options: dict[str, Any]) -> Mutant:
    """One requirement of the ceremony broken, without a signature, as in attestation `none`."""
    name = random.choice(
        ("client data", "flags", "leftover", "after it", "format", "key", "no key")
    )
    changes: dict[str, Any] = {}
    if name == "client data":
        changes = _client(random, "webauthn.create")
    elif name == "flags":
        changes = {"flags": _flags(random, AT)}
    elif name == "leftover":
        changes = {"tail": random.randbytes(1 + random.randrange(30))}
    elif name == "after it":
        changes = {"attestation_tail": random.randbytes(1 + random.randrange(30))}
    elif name == "format":
        changes = {
            "fmt": random.choice(
                ("fido-u2f", "tpm", "android-key", "apple", "None", "", "packed", 1, None)
            )
        }
    elif name == "key":
        changes = {"cose": _bad_key(random, device.cose())}
    else:
        changes = {"flags": UP | UV}
    return Mutant(f"signed: {name}", device.registration(options, **changes))


def check_registration(credential: Any) -> object:
    return verify_registration(
        credential=credential, expected_challenge=CHALLENGE, rp_id=RP_ID, origin=ORIGIN
    )


def _bad_key(random: Random, good: dict[int, Any]) -> dict[int, Any]:
    """A COSE key with an unrequested algorithm, off its curve, weak, short, or of a wrong type."""
    name = random.choice(list(good))
    return random.choice(
        (
            {1: 2, 3: -36, -1: 3, -2: bytes(66), -3: bytes(66)},
            {1: 1, 3: -8, -1: 6, -2: b"\x01" + bytes(31)},
            {1: 1, 3: -8, -1: 6, -2: b"\xff" * 32},
            {1: 2, 3: -7, -1: 1, -2: random.randbytes(32), -3: random.randbytes(32)},
            {1: 3, 3: -257, -1: b"\xff" * 128, -2: b"\x01\x00\x01"},
            {1: 3, 3: -65535, -1: b"\xff" * 256, -2: b"\x01\x00\x01"},
            {key: each for key, each in good.items() if key != name},
            good | {name: random.choice((None, "x", [], {}, 99, -99, b"", b"\x00"))},
            good | {random.choice((2, 4, 5, 99)): random.choice((b"x", "x", 1))},
        )
    )


def packed(device: Authenticator, options: dict[str, Any]) -> dict[str, Any]:
    """A registration whose new key signs it (WebAuthn L3 section 8.2, self attestation)."""
    answer = device.registration(options)
    client = unb64(answer["response"]["clientDataJSON"])
    attested = (
        bytes(16)
        + struct.pack(">H", len(device.credential_id))
        + device.credential_id
        + device.public_key
    )
    data = device.authenticator_data(UP | UV | AT, tail=attested)
    signature = device.sign(data + hashlib.sha256(client).digest())
    document = {"fmt": "packed", "attStmt": {"alg": device.alg, "sig": signature}, "authData": data}
    return answer | {
        "response": answer["response"] | {"attestationObject": b64(cbor2.dumps(document))}
    }


CEREMONIES = (Assertions(), Registrations())
