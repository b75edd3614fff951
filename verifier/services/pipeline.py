"""May this agent do that, now? The numbered checks of `POST /v1/verify`, in order; steps 6 to 15 run inside a store."""

import logging
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from django.conf import settings
from django.db import DatabaseError, InterfaceError

from agentauth.protocol.dpop import LeakedKeyError, check_binding, check_nonce, url_within, verify_proof
from agentauth.protocol.errors import (
    IdempotencyMismatchError,
    InvalidProofError,
    InvalidRequestError,
    InvalidTokenError,
    ProofNonceRequiredError,
    TemporarilyUnavailableError,
)
from agentauth.protocol.token import TokenClaims, TokenKey
from agentauth.protocol.values import per_call
from audit.refusals import RECORDED_PER_MINUTE, Batches
from audit.services import Actor
from kms.certificates import token_keys
from registry.models import ServiceProvider
from registry.services.nonces import Nonces, nonces_of
from verifier.answers import body_of
from verifier.requests import VerifyRequest
from verifier.services import home
from verifier.services.proved_tokens import ProvedTokens
from verifier.stores import Delivery, EarlyRefusal, Permit, Recalled, Refuse, StoreCall
from verifier.stores.choice import decide_now

logger = logging.getLogger(__name__)

TOKENS = ProvedTokens()
# Refusals of tokens that are not ours: so many events a minute for each process, service provider and reason.
_UNRECOGNISED = Batches(seconds=60 / RECORDED_PER_MINUTE)


@per_call(frozen=True, slots=True)
class Answer:
    """What the service provider gets, with status 200: the body of section 8."""

    body: Mapping[str, Any]


def verify(
    *,
    service_provider: ServiceProvider,
    request: VerifyRequest,
    delivery: Delivery | None = None,
    actor: Actor,
    now: datetime,
) -> Answer:
    """Decide one request of an authenticated service provider (docs/protocol.md section 8).

    1. Service provider: authenticated by the caller of this function. 2. Its own idempotency.
    3. Token. 4. Proof. 5. Binding. 6. Spend the proof. 7. State. 8. Capability and constraints. 9. The agent's
    idempotency. 10. Windows. 11. Presence. 12. Threshold. 13. Rate. 14. Budgets and uses. 15. Record.

    3 to 5 are `prepare`, without I/O; 2, 6 and 15 are the store's, 7 to 14 `verifier.decision.decide` inside it. So 2
    comes after 3 to 5 in time, but its answer goes before theirs. A refusal is an answer, and its event is committed
    before it is given. Raises IdempotencyMismatchError (that of step 9 committed and recorded),
    IdempotencyInProgressError, and TemporarilyUnavailableError where the answer could not be had: never a wrong yes.
    """
    try:
        tenure = home.LEASE.current()
        prepared = prepare(
            request,
            service_provider=service_provider,
            keys=token_keys(now=now),
            tenure=tenure,
            nonces=nonces_of(tenure.nonce_server(str(service_provider.pk)), now),
            nonce_required=service_provider.require_nonce or tenure.careful(now),
            delivery=delivery,
            actor=actor,
            now=now,
        )
        return conclude(
            decide_now(prepared, tenure), prepared.fresh_nonce if isinstance(prepared, StoreCall) else None
        )
    except (DatabaseError, InterfaceError) as error:
        # Whether the transaction was committed may be unknown: the proof may be spent, so the agent signs anew.
        logger.exception("verify could not reach its store")
        raise TemporarilyUnavailableError from error


def prepare(
    request: VerifyRequest,
    *,
    service_provider: ServiceProvider,
    keys: Mapping[str, TokenKey],
    tenure: home.Tenure,
    nonces: Nonces,
    nonce_required: bool,
    delivery: Delivery | None = None,
    actor: Actor,
    now: datetime,
    tokens: ProvedTokens = TOKENS,
) -> StoreCall | EarlyRefusal:
    """Steps 3 to 5, without I/O: who signed what, for whom, and with which key. `keys` maps `kid` to token keys.

    The proof is not spent here: who cannot show a token bound to the proof's key writes nothing into the replay
    memory, and cannot use up another's `jti`. A proof without a nonce is refused where `nonce_required`; one whose
    nonce is not among `nonces` always is, and never becomes good, since nonces only get older. `tokens` spares the
    signature of a token proved before; the proof's is checked every time.
    """
    seconds = int(now.timestamp())
    claims: TokenClaims | None = None
    try:
        # 3. Signature, issuer, audience, then time. Forged, foreign and another service provider's are one answer.
        claims = tokens.verify(
            request.untrusted_token,
            keys=keys,
            expected_issuer=settings.ISSUER,
            expected_audience=service_provider.audience,
            now=seconds,
        )
        # 4. The URL first: a proof for a resource that is not the caller's proves nothing to it.
        _check_url(request.untrusted_url, service_provider.audience)
        proof = verify_proof(
            request.untrusted_proof or "",
            expected_method=request.method,
            expected_url=request.untrusted_url,
            access_token=request.untrusted_token,
            body=None,
            now=seconds,
        )
        check_nonce(proof, accepted=nonces.accepted, required=nonce_required)
        # 5. The token is worth something only in the hands of the key it names.
        check_binding(proof, expected_jkt=claims.jkt)
    except ProofNonceRequiredError as error:
        refuse, leaked_key = Refuse(error.code, nonce=nonces.current), None
    except (InvalidTokenError, InvalidProofError) as error:
        refuse = Refuse(error.code, error.reason)
        leaked_key = error.key if isinstance(error, LeakedKeyError) else None
    else:
        return StoreCall(
            service_provider_id=service_provider.id,
            claims=claims,
            proof_jkt=proof.jkt,
            proof_jti=proof.jti,
            spent_until=proof.spent_until,
            action=request.action,
            operation_key=request.operation_key,
            dry_run=request.dry_run,
            actor=actor,
            now=now,
            tenure=tenure,
            fresh_nonce=nonces.fresh_for(proof.nonce),
            delivery=delivery,
        )
    return EarlyRefusal(
        service_provider_id=service_provider.id,
        refuse=refuse,
        claims=claims,
        action=request.action,
        operation_key=request.operation_key,
        dry_run=request.dry_run,
        actor=actor,
        now=now,
        leaked_key=leaked_key,
        delivery=delivery,
        stands_for=1 if claims else _stands_for(service_provider, refuse),
    )


def _stands_for(service_provider: ServiceProvider, refuse: Refuse) -> int:
    """See `EarlyRefusal`. Sampled, because any caller can make service providers ask about made-up tokens."""
    key = f"{service_provider.pk} {refuse.error} {refuse.reason}"
    return _UNRECOGNISED.add(key, now=time.monotonic())


def conclude(outcome: Permit | Refuse | Recalled, fresh_nonce: str | None) -> Answer:
    """The answer of an outcome that is committed, a yes with the nonce to use next where there is a new one.

    Raises IdempotencyMismatchError, which is an HTTP error.
    """
    body = outcome.body if isinstance(outcome, Recalled) else body_of(outcome)
    if body.get("error") == IdempotencyMismatchError.code:
        error = IdempotencyMismatchError(body["error_description"])
        # Its event was committed with the spent proof; the edge must not write a second one.
        error.recorded = True
        raise error
    if body["valid"] and fresh_nonce is not None:
        # Never stored with the answer: what is given again brings the nonce of its own time.
        return Answer({**body, "nonce": fresh_nonce})
    return Answer(body)


def _check_url(untrusted_url: str, audience: str) -> None:
    try:
        inside = url_within(untrusted_url, audience)
    except InvalidRequestError as error:
        raise InvalidProofError(error.description, reason="url") from None
    if not inside:
        raise InvalidProofError("The URL lies outside the audience.", reason="url")
