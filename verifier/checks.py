"""Who signed what, for whom, and with which key: steps 3 to 5 of `POST /v1/verify` (docs/protocol.md section 8), without I/O."""

import time
from collections.abc import Mapping
from datetime import datetime

from django.conf import settings

from agentauth.protocol.decision import Refuse
from agentauth.protocol.dpop import LeakedKeyError, check_binding, check_nonce, url_within, verify_proof
from agentauth.protocol.errors import (
    InvalidProofError,
    InvalidRequestError,
    InvalidTokenError,
    ProofNonceRequiredError,
)
from agentauth.protocol.token import TokenClaims, TokenKey
from audit.refusals import RECORDED_PER_MINUTE, Batches
from audit.services import Actor
from registry.models import ServiceProvider
from registry.services.nonces import Nonces
from verifier.requests import VerifyRequest
from verifier.services import home
from verifier.services.proved_tokens import ProvedTokens
from verifier.stores import Delivery, EarlyRefusal, StoreCall

TOKENS = ProvedTokens()
# Refusals of tokens that are not ours: so many events a minute for each process, service provider and reason.
_UNRECOGNISED = Batches(seconds=60 / RECORDED_PER_MINUTE)


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
    """A call that is to be judged, or its refusal. `keys` maps `kid` to token keys.

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


def _check_url(untrusted_url: str, audience: str) -> None:
    try:
        inside = url_within(untrusted_url, audience)
    except InvalidRequestError as error:
        raise InvalidProofError(error.description, reason="url") from None
    if not inside:
        raise InvalidProofError("The URL lies outside the audience.", reason="url")
