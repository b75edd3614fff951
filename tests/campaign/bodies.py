"""Mutated bodies: the strict JSON reader, request grammars, and verify requests up to the store."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random
from typing import Any

from django.test import override_settings

from agentauth.protocol.behavioural_envelope import parse_envelope
from agentauth.protocol.capability import parse_action, parse_capabilities
from agentauth.protocol.encoding import read_object
from agentauth.protocol.errors import AgentAuthError, InvalidRequestError
from audit.services import Actor
from registry.models import ServiceProvider
from registry.services.nonces import nonces_of
from tests.campaign.grammar import (
    ACTIONS,
    CAPABILITIES,
    ENVELOPE,
    break_action,
    break_capabilities,
    break_envelope,
    break_verify,
)
from tests.campaign.kinds import KEYS, proofs, tokens
from tests.campaign.mutants import broken_json, changed_text
from tests.campaign.signed import Mutant
from tests.vectors import generate
from tests.vectors.generate import AUDIENCE, ISSUER, NOW, URL
from verifier.credential_checks import prepare
from verifier.requests import parse_verify_request
from verifier.services.replay_epochs import ReplayEpoch
from verifier.stores import EarlyRefusal

SOMEBODY = Actor("service_provider", generate.identifier("service provider"))
# Never saved: `prepare` reads only its id and audience, and does no I/O.
PROVIDER = ServiceProvider(id=generate.identifier("service provider"), audience=AUDIENCE)
WHEN = datetime.fromtimestamp(NOW, UTC)


class RefusedError(AgentAuthError):
    """The verifier's first half refused the call before it reached the store."""

    code = "refused"


@dataclass(frozen=True)
class Readers:
    """Request bodies as text, through three request grammars."""

    name: str = "body"
    share: int = 6
    refusal: type[AgentAuthError] = InvalidRequestError

    def attack(self, random: Random) -> tuple[Mutant, Callable[[Any], object]]:
        way = random.randrange(4)
        if way == 0:
            rule, data = broken_json(random, random.choice((*ACTIONS, ENVELOPE, *CAPABILITIES)))
            return Mutant(f"JSON: {rule}", data), read_object
        if way == 1:
            return Mutant(
                "capabilities", break_capabilities(random, CAPABILITIES)
            ), parse_capabilities
        if way == 2:
            return Mutant("envelope", break_envelope(random, ENVELOPE)), parse_envelope
        return Mutant("action", break_action(random, random.choice(ACTIONS))), parse_action

    def valid(self) -> None:
        parse_capabilities(CAPABILITIES)
        parse_envelope(ENVELOPE)
        for action in ACTIONS:
            parse_action(read_object(json.dumps(action)))


@dataclass(frozen=True)
class VerifyRequests:
    """Verify requests through the reader and `prepare`: token, proof and binding."""

    name: str = "verify request"
    share: int = 12
    refusal: tuple[type[AgentAuthError], ...] = (InvalidRequestError, RefusedError)

    def attack(self, random: Random) -> tuple[Mutant, Callable[[Any], object]]:
        body = good_body(random)
        way = random.random()
        if way < 0.35:
            mutant, _ = tokens.attack(random)
            return Mutant(f"token, {mutant.rule}", json.dumps(body | {"token": mutant.value})), ask
        if way < 0.6:
            name, wrong = self._proof(random)
            return Mutant(f"proof, {name}", json.dumps(body | {"proof": wrong})), ask
        if way < 0.7:
            wrong = random.choice(("GET", "post", "POST ", "PUT", "PÖST", "HEAD"))
            return Mutant("method", json.dumps(body | {"method": wrong})), ask
        if way < 0.8:
            urls = (
                f"{URL}/x",
                f"{AUDIENCE}/",
                f"{URL}/../x",
                "http://api.sp.example/v1/events",
                "x",
                "",
                changed_text(random, AUDIENCE)[1],
            )
            return Mutant("url", json.dumps(body | {"url": random.choice(urls)})), ask
        if way < 0.9:
            rule, data = broken_json(random, body)
            return Mutant(f"JSON: {rule}", data), ask
        return Mutant("members", json.dumps(break_verify(random, body))), ask

    def _proof(self, random: Random) -> tuple[str, object]:
        """A broken proof of this call, none, or a valid one for something else."""
        if random.random() < 0.2:
            other = (
                None,
                "",
                generate.proof(access_token=generate.token(jti="other")),
                generate.proof(generate.AGENT_P256),
                generate.token(),
            )
            return "another's or none", random.choice(other)
        while True:
            mutant, _ = proofs.attack(random)
            if isinstance(mutant.value, str):
                return mutant.rule, mutant.value

    def valid(self) -> None:
        for seed in range(9):
            ask(json.dumps(good_body(Random(seed))))


def good_body(random: Random) -> dict[str, Any]:
    body = {
        "token": generate.token(),
        "proof": generate.proof(),
        "method": "POST",
        "url": URL,
        "idempotency_key": "operation-1",
    }
    return body | random.choice(({"action": random.choice(ACTIONS)}, {"dry_run": True}, {}))


def ask(body: str | bytes) -> object:
    """Run the verifier up to its store. Raises the refusal; RefusedError for a refusing answer."""
    request = parse_verify_request(read_object(body))
    with override_settings(ISSUER=ISSUER):
        done = prepare(
            request,
            service_provider=PROVIDER,
            keys=KEYS,
            replay_epoch=ReplayEpoch(1, "database", frozenset(), WHEN),
            nonces=nonces_of(str(PROVIDER.pk), WHEN),
            nonce_required=False,
            actor=SOMEBODY,
            now=WHEN,
        )
    if isinstance(done, EarlyRefusal):
        raise RefusedError(done.refuse.error, reason=done.refuse.reason)
    return done


REQUESTS = (Readers(), VerifyRequests())
