"""Measures each step of a warm verification, without I/O: `python -m
benchmarks.verification_steps`.

Run it alone on the machine. Every input is distinct and valid (one agent, one token, a new proof
per call), made before the clock starts. Prints a Markdown table: CPU µs per call, median (lowest to
highest) of the runs, and the ratio to a bare signature check.
"""

# ruff: noqa: E402 - the settings must be read before anything imports a model

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

# Before Django reads its settings: this run keeps nothing and opens no database.
os.environ.setdefault("VAR_DIR", tempfile.mkdtemp(prefix="agentauth-steps-"))
os.environ.setdefault("SECRET_KEY", "only-for-benchmarks-0123456789-abcdefghijklmnopqrstuvwxyz")
os.environ["PUBLIC_URL"] = "http://localhost:8000"
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "agentauth.settings")

import django

django.setup()

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from django.conf import settings
from nacl.signing import VerifyKey

from agentauth.protocol.behavioural_envelope import Ledger, parse_envelope
from agentauth.protocol.capability import parse_capabilities
from agentauth.protocol.decision_rules import Allow, Snapshot, decide
from agentauth.protocol.dpop import make_proof, verify_proof
from agentauth.protocol.encoding import b64u_decode, read_object
from agentauth.protocol.keys import Algorithm, LocalSigner, PrivateKey
from agentauth.protocol.token import build_claims, sign_token, verify_token
from audit.new_ids import new_id, new_id_text
from audit.services import Actor
from registry.models import Agent, ServiceProvider
from registry.services.nonces import nonces_of
from verifier.answers import allowed_body
from verifier.credential_checks import prepare
from verifier.requests import parse_verify_request
from verifier.services.replay_epochs import ReplayEpoch
from verifier.stores import StoreCall

AUDIENCE = "https://api.service.example/v1"
URL = "https://api.service.example/v1/events/42?limit=10"
NOW = datetime(2026, 11, 25, 12, 0, 0, 250_000, tzinfo=UTC)
SECONDS = int(NOW.timestamp())
CAPABILITY = {"type": "read", "resource": "calendar"}
ACTION: dict[str, Any] = {"type": "read", "resource": "calendar/work"}
ENVELOPE = {"max_requests_per_minute": 6_000, "max_burst": 6_000}
encode = json.JSONEncoder(separators=(",", ":")).encode
Steps = Mapping[str, Callable[[int], object]]


@dataclass(frozen=True, slots=True)
class Stage:
    """One agent with one token of one grant at one service provider, and the calls to measure."""

    provider: ServiceProvider
    agent: Agent
    keys: Mapping[str, Any]
    token: str
    agent_key: PrivateKey
    bodies: Sequence[bytes]
    proofs: Sequence[str]


def stage(alg: Algorithm, calls: int, action: Mapping[str, Any] = ACTION) -> Stage:
    """Distinct calls signed by a key of `alg`; the registry's own key is Ed25519, the default."""
    registry, agent_key = LocalSigner(PrivateKey.generate()), PrivateKey.generate(alg)
    agent = Agent(id=new_id(), name="Research Assistant", model_origin="models.example")
    token = sign_token(
        build_claims(
            issuer=settings.ISSUER,
            audience=AUDIENCE,
            subject="0f6c2f6d1f5b4a0f",
            agent_id=str(agent.pk),
            jti=str(new_id()),
            issued_at=SECONDS,
            expires_at=SECONDS + 900,
            jkt=agent_key.public.thumbprint,
            grant_id=str(new_id()),
            grant_version=1,
            capabilities=parse_capabilities([CAPABILITY]),
            has_envelope=True,
        ),
        registry,
    )
    signer = LocalSigner(agent_key)
    proofs = [
        make_proof(
            signer, method="GET", url=URL, iat=SECONDS, jti=str(uuid.uuid4()), access_token=token
        )
        for _ in range(calls)
    ]
    asked = (
        {"token": token, "proof": proof, "method": "GET", "url": URL, "action": action}
        for proof in proofs
    )
    return Stage(
        provider=ServiceProvider(id=new_id(), audience=AUDIENCE),
        agent=agent,
        keys={registry.kid: registry.public},
        token=token,
        agent_key=agent_key,
        bodies=[json.dumps(body).encode() for body in asked],
        proofs=proofs,
    )


def bare(place: Stage) -> Steps:
    """The libraries' signature checks alone, with the key cached."""
    split = [proof.rpartition(".") for proof in place.proofs]
    messages = [head.encode() for head, _, _ in split]
    signatures = [b64u_decode(tail) for _, _, tail in split]
    jwk = place.agent_key.public.jwk
    x = b64u_decode(jwk["x"])
    if "y" in jwk:
        numbers = (int.from_bytes(x), int.from_bytes(b64u_decode(jwk["y"])))
        p256 = ec.EllipticCurvePublicNumbers(*numbers, ec.SECP256R1()).public_key()
        der = [
            encode_dss_signature(int.from_bytes(each[:32]), int.from_bytes(each[32:]))
            for each in signatures
        ]
        rule = ec.ECDSA(hashes.SHA256())
        return {
            "bare P-256, cryptography": lambda index: p256.verify(der[index], messages[index], rule)
        }
    openssl, sodium = ed25519.Ed25519PublicKey.from_public_bytes(x), VerifyKey(x)
    return {
        "bare Ed25519, PyNaCl": lambda index: sodium.verify(messages[index], signatures[index]),
        "bare Ed25519, cryptography": lambda index: openssl.verify(
            signatures[index], messages[index]
        ),
    }


def steps(place: Stage) -> Steps:
    """The steps of `POST /v1/verify` that need no I/O, in order, and all of them together."""
    nonces = nonces_of(str(place.provider.pk), NOW)
    actor = Actor("service_provider", str(place.provider.pk))
    replay_epoch = ReplayEpoch(1, "database", frozenset(), NOW)
    snapshot = Snapshot(
        None,
        parse_capabilities([CAPABILITY]),
        parse_envelope(ENVELOPE),
        None,
        "none",
        human_online=False,
    )
    token = partial(
        verify_token,
        place.token,
        keys=place.keys,
        expected_issuer=settings.ISSUER,
        expected_audience=AUDIENCE,
        now=SECONDS,
    )

    def parse(index: int) -> Any:
        return parse_verify_request(read_object(place.bodies[index]))

    def prove(index: int) -> object:
        return verify_proof(
            place.proofs[index],
            expected_method="GET",
            expected_url=URL,
            access_token=place.token,
            body=None,
            now=SECONDS,
        )

    def ready(request: Any) -> StoreCall:
        call = prepare(
            request,
            service_provider=place.provider,
            keys=place.keys,
            replay_epoch=replay_epoch,
            nonces=nonces,
            nonce_required=False,
            actor=actor,
            now=NOW,
        )
        assert isinstance(call, StoreCall), call
        return call

    def judge(call: StoreCall) -> Allow:
        allow = decide(call, snapshot, Ledger())
        assert isinstance(allow, Allow), allow
        return allow

    def render(call: StoreCall, allow: Allow) -> bytes:
        body = allowed_body(
            allow.capability,
            allow.limits,
            decision_id=new_id_text(),
            agent=place.agent,
            claims=call.claims,
            now_seconds=SECONDS,
        )
        return encode(body).encode()

    def whole(index: int) -> bytes:
        call = ready(parse(index))
        return render(call, judge(call))

    requests = [parse(index) for index in range(len(place.bodies))]
    call = ready(requests[0])
    allow = judge(call)
    return {
        "read and parse the request": parse,
        "verify_token, nothing kept": lambda _: token(),
        "verify_proof": prove,
        "prepare": lambda index: ready(requests[index]),
        "decide": lambda _: judge(call),
        "answer as JSON": lambda _: render(call, allow),
        "new_id": lambda _: new_id(),
        "whole": whole,
    }


def cpu_us(step: Callable[[int], object], first: int, calls: int) -> float:
    """CPU µs per call, over `calls` of them; inputs from `first` on."""
    began = time.process_time_ns()
    for index in range(first, first + calls):
        step(index)
    return (time.process_time_ns() - began) / calls / 1_000


def measure(alg: Algorithm, *, calls: int, runs: int) -> None:
    """Print a row for each step; the ratio is to the first one."""
    warm = calls // 4
    place = stage(alg, warm + calls)
    every = {**bare(place), **steps(place)}
    for step in every.values():
        cpu_us(step, 0, warm)
    # Every step in each run, so that a slow phase of the machine affects all steps.
    taken: dict[str, list[float]] = {name: [] for name in every}
    for _ in range(runs):
        for name, step in every.items():
            taken[name].append(cpu_us(step, warm, calls))
    unit = statistics.median(next(iter(taken.values())))
    print(f"\n| {alg}: step | CPU µs, median (min-max) | ÷ bare signature check |\n|---|---|---|")
    for name, each in taken.items():
        median = statistics.median(each)
        print(f"| {name} | {median:.1f} ({min(each):.1f}-{max(each):.1f}) | {median / unit:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=2_000)
    parser.add_argument("--runs", type=int, default=7)
    given = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    for alg in ("EdDSA", "ES256"):
        measure(alg, calls=given.calls, runs=given.runs)


if __name__ == "__main__":
    main()
