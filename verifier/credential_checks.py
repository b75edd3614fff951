"""Steps 3 to 5 of `POST /v1/verify` (docs/protocol.md section 8): token, proof, binding; no I/O."""

import time
from collections.abc import Mapping
from datetime import datetime

from django.conf import settings

from agentauth.protocol.decision_rules import Refuse
from agentauth.protocol.dpop import (
    LeakedKeyError,
    check_binding,
    check_nonce,
    url_within,
    verify_proof,
)
from agentauth.protocol.errors import (
    InvalidProofError,
    InvalidRequestError,
    InvalidTokenError,
    ProofNonceRequiredError,
)
from agentauth.protocol.token import TokenClaims, TokenKey
from audit.log.refusal_counts import RECORDED_PER_MINUTE, Batches
from audit.services import Actor
from registry.models import ServiceProvider
from registry.services.nonces import Nonces
from verifier.requests import VerifyRequest
from verifier.services import replay_epochs
from verifier.services.verified_token_cache import ProvedTokens
from verifier.stores import EarlyRefusal, ProviderKey, StoreCall

TOKENS = ProvedTokens()
# Rate of the events for tokens that are not ours, per process, service provider and reason.
_UNRECOGNISED = Batches(seconds=60 / RECORDED_PER_MINUTE)


def prepare(
    request: VerifyRequest,
    *,
    service_provider: ServiceProvider,
    keys: Mapping[str, TokenKey],
    replay_epoch: replay_epochs.ReplayEpoch,
    nonces: Nonces,
    nonce_required: bool,
    provider_key: ProviderKey | None = None,
    actor: Actor,
    now: datetime,
    tokens: ProvedTokens = TOKENS,
) -> StoreCall | EarlyRefusal:
    """Return the call to judge, or its refusal. `keys` maps `kid` to token keys.

    The proof is not spent here: a caller without a token bound to the proof's key must not write
    into the replay cache or use up another caller's `jti`. A proof without a nonce is refused if
    `nonce_required`. One whose nonce is not in `nonces` is always refused and never becomes valid,
    since nonces only get older. `tokens` caches token signatures already verified; the proof's
    signature is verified every time. A dry run's `provider_key` is dropped: it consumes nothing, so
    the same call is judged again.
    """
    seconds = int(now.timestamp())
    if request.dry_run:
        # No answer is kept, so the key names nothing.
        provider_key = None
    claims: TokenClaims | None = None
    try:
        # 3. Signature, issuer and audience before time, so that forged, foreign and other service
        # providers' tokens all get the same answer.
        claims = tokens.verify(
            request.untrusted_token,
            keys=keys,
            expected_issuer=settings.ISSUER,
            expected_audience=service_provider.audience,
            now=seconds,
        )
        # 4. The URL first: a proof for another service provider's resource proves nothing here.
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
        # 5. A token is valid only with a proof by the key it names, so a stolen token is useless.
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
            replay_epoch=replay_epoch,
            fresh_nonce=nonces.fresh_for(proof.nonce),
            provider_key=provider_key,
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
        provider_key=provider_key,
        stands_for=1 if claims else _stands_for(service_provider, refuse),
    )


def _stands_for(service_provider: ServiceProvider, refuse: Refuse) -> int:
    """See `EarlyRefusal`. Sampled: anyone can make a service provider ask about made-up tokens."""
    key = f"{service_provider.pk} {refuse.error} {refuse.reason}"
    return _UNRECOGNISED.add(key, now=time.monotonic())


def _check_url(untrusted_url: str, audience: str) -> None:
    # The provider states the URL. If it could state another provider's, it could present a proof
    # that was made for that one (RFC 9449 section 4.3, check 9).
    try:
        inside = url_within(untrusted_url, audience)
    except InvalidRequestError as error:
        raise InvalidProofError(error.description, reason="url") from None
    if not inside:
        raise InvalidProofError("The URL lies outside the audience.", reason="url")
