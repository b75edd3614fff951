"""Measures a verifier process's memory per live token, and whether many tokens slow it down.

`python -m benchmarks.memory`, alone on the machine. Each token belongs to another agent, grant and
person. It takes a real token's path without I/O: parsed and proved, its state read from rows, its
proof checked, decided, and the result cached. Prints bytes per token, and CPU µs of later calls
about each token in turn.
"""

import argparse
import gc
import os
import statistics
import time
import uuid
from collections.abc import Sequence
from datetime import timedelta
from operator import attrgetter
from pathlib import Path
from typing import Any, Final

# It sets Django up.
from benchmarks import verification_steps  # isort: split

from django.conf import settings
from django.utils import timezone

from agentauth.protocol.capability import parse_capabilities
from agentauth.protocol.dpop import make_proof
from agentauth.protocol.keys import LocalSigner, PrivateKey
from agentauth.protocol.token import build_claims, sign_token
from audit.new_ids import new_id
from audit.services import Actor
from registry.models import Agent, Grant, Human, ServiceProvider, Token
from registry.services.nonces import nonces_of
from registry.services.token_state import TokenState
from verifier.credential_checks import prepare
from verifier.requests import parse_verify_request
from verifier.services.cached_token import CachedToken, known_of
from verifier.services.replay_epochs import ReplayEpoch
from verifier.services.tagged_cache import TaggedCache
from verifier.services.verified_token_cache import ProvedTokens
from verifier.stores import StoreCall
from verifier.stores.redis_decisions import plan_light_decision

REGISTRY: Final = LocalSigner(PrivateKey.generate())
KEYS: Final = {REGISTRY.kid: REGISTRY.public}
NOW: Final = timezone.now()
SECONDS: Final = int(NOW.timestamp())
TENURE: Final = ReplayEpoch(1, "redis", frozenset(), NOW)
PROVIDER: Final = ServiceProvider(
    id=new_id(), audience=verification_steps.AUDIENCE, status="active"
)
ACTOR: Final = Actor("service_provider", str(PROVIDER.pk), "request")
NONCES: Final = nonces_of(str(PROVIDER.pk), NOW)
# Timed calls; each checks a signature.
MEASURED: Final = 4_000


class Caller:
    """An agent with a key and a token."""

    __slots__ = ("signer", "state", "token")

    def __init__(self) -> None:
        self.signer = LocalSigner(PrivateKey.generate())
        later = NOW + timedelta(minutes=15)
        human = Human(id=uuid.uuid4(), status=Human.Status.ACTIVE)
        jkt = self.signer.public.thumbprint
        agent = Agent(
            id=new_id(),
            name="Research Assistant",
            model_origin="models.example",
            human=human,
            status="active",
            expires_at=later,
            jkt=jkt,
        )
        grant = Grant(
            id=new_id(),
            agent=agent,
            service_provider=PROVIDER,
            status=Grant.Status.APPROVED,
            version=1,
            valid_until=later,
            capabilities=[verification_steps.CAPABILITY],
            envelope=verification_steps.ENVELOPE,
        )
        row = Token(jti=str(uuid.uuid4()), jkt=jkt, grant=grant, grant_version=1, expires_at=later)
        self.state = TokenState(row, grant, agent, human, PROVIDER, receipt_kid="a receipt key")
        claims = build_claims(
            issuer=settings.ISSUER,
            audience=verification_steps.AUDIENCE,
            subject=uuid.uuid4().hex,
            agent_id=str(agent.pk),
            jti=row.jti,
            issued_at=SECONDS,
            expires_at=SECONDS + 900,
            jkt=jkt,
            grant_id=str(grant.pk),
            grant_version=1,
            capabilities=parse_capabilities([verification_steps.CAPABILITY]),
            has_envelope=True,
        )
        self.token = sign_token(claims, REGISTRY)

    def question(self) -> dict[str, Any]:
        """A verify body with a new proof."""
        proof = make_proof(
            self.signer,
            method="GET",
            url=verification_steps.URL,
            iat=int(time.time()),
            jti=str(uuid.uuid4()),
            access_token=self.token,
        )
        return {
            "token": self.token,
            "proof": proof,
            "method": "GET",
            "url": verification_steps.URL,
            "action": verification_steps.ACTION,
        }


class Process:
    """What a verifier process keeps about tokens."""

    def __init__(self) -> None:
        self.tokens = ProvedTokens()
        self.states: TaggedCache[str, CachedToken] = TaggedCache(1_000_000, attrgetter("rests_on"))

    def decide(self, question: dict[str, Any], state: TokenState | None = None) -> None:
        """Decide as far as it goes without Redis. `state`: what the database has on a new token."""
        call = prepare(
            parse_verify_request(question),
            service_provider=PROVIDER,
            keys=KEYS,
            replay_epoch=TENURE,
            nonces=NONCES,
            nonce_required=False,
            actor=ACTOR,
            now=timezone.now(),
            tokens=self.tokens,
        )
        if not isinstance(call, StoreCall):
            raise TypeError(f"the call was refused: {call}")
        if state is not None:
            self.states.keep(call.claims.jti, known_of(state))
        known = self.states.get(call.claims.jti)
        if known is None:
            raise KeyError("the token is not held")
        plan_light_decision(call, known)


def resident() -> int:
    """Bytes of memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def filled(process: Process, count: int) -> Sequence[Caller]:
    """A process that knows `count` tokens; and a thousand evenly spread callers of them."""
    kept = []
    for number in range(count):
        caller = Caller()
        process.decide(caller.question(), caller.state)
        if number % max(1, count // 1_000) == 0:
            kept.append(caller)
    return kept


def cpu_us(process: Process, callers: Sequence[Caller]) -> float:
    """CPU µs per call."""
    questions = [callers[number % len(callers)].question() for number in range(MEASURED)]
    began = time.process_time_ns()
    for question in questions:
        process.decide(question)
    return (time.process_time_ns() - began) / 1_000 / MEASURED


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    given = parser.parse_args()
    print("| live tokens | bytes of memory a token | CPU µs a call, median of 5 |\n|---|---|---|")
    for count in given.tokens:
        process = Process()
        gc.collect()
        before = resident()
        callers = filled(process, count)
        gc.collect()
        # The server does this once it has loaded.
        gc.freeze()
        each = (resident() - before) / count
        times = [cpu_us(process, callers) for _ in range(5)]
        print(
            f"| {count:,} | {each:,.0f} | {statistics.median(times):.1f} "
            f"({min(times):.1f}–{max(times):.1f}) |"
        )


if __name__ == "__main__":
    main()
