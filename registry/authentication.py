"""Authenticate agents by a proof under their key, service providers by client id and secret."""

import base64
import binascii
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote_plus

from django.conf import settings
from django.http import HttpRequest
from django.utils import timezone
from rest_framework.authentication import BaseAuthentication
from rest_framework.request import Request

from agentauth.protocol.dpop import (
    LeakedKeyError,
    VerifiedProof,
    check_nonce,
    single_header,
    verify_proof,
)
from agentauth.protocol.errors import (
    InvalidClientError,
    InvalidProofError,
    InvalidRequestError,
    ProofNonceRequiredError,
    RateLimitedError,
)
from audit.services import Actor
from registry import caller_limits
from registry.models import Agent, Human, ServiceProvider
from registry.services.agent_key_lookup import holder_of
from registry.services.barred_keys import bar_disclosed_key
from registry.services.nonces import REGISTRY, nonces_of
from registry.services.provider_authentication import authenticate_service_provider
from registry.services.spent_proofs import spend_proof

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


def caller_of(request: Request) -> Any:
    """The caller: an Agent, a ServiceProvider, or None. DRF's types know only AUTH_USER_MODEL."""
    return request.user


def forget_caller(request: Request) -> None:
    """Set no caller. The error handler reads it even if authentication itself fails."""
    request.user = None  # type: ignore[assignment]  # the stubs know users alone


def enforce_rate_limit(
    request: Request, caller: Agent | ServiceProvider, ask: Callable[[str, str], None]
) -> None:
    """Apply the rate limit `ask` to this caller. Raises RateLimitedError.

    A refusal sets `request.user` first, so that its event names the caller.
    """
    sort = caller_limits.AGENT if isinstance(caller, Agent) else caller_limits.SERVICE_PROVIDER
    key = str(caller.pk)
    if isinstance(caller, Agent) and caller.human_id is None:
        # No human vouches for an unclaimed agent, and keys cost nothing: with a limit per agent, a
        # stranger could add to it with each new key. So its calls count by address.
        sort, key = caller_limits.ADDRESS, str(getattr(request._request, "client_address", ""))  # noqa: SLF001 — our own attribute on DRF's inner request
    try:
        ask(sort, key)
    except RateLimitedError:
        request.user = caller  # type: ignore[assignment]  # the stubs know users alone
        raise


def actor_of(request: HttpRequest | Request) -> Actor:
    """The caller for the audit log, with the request's id; `anonymous` until authenticated."""
    user, request_id = getattr(request, "user", None), str(getattr(request, "request_id", ""))
    for model, kind in ((Agent, "agent"), (ServiceProvider, "service_provider"), (Human, "human")):
        if isinstance(user, model):
            return Actor(kind, str(user.pk), request_id)
    return Actor("anonymous", "", request_id)


def read_proof(request: Request, *, now: datetime) -> VerifiedProof:
    """The request's proof, checked against the request. Its nonce is unchecked; it is unspent.

    The expected URL is built from PUBLIC_URL, never from the Host header, which the caller
    chooses. The proof covers the exact body. It does not cover a query string, so a mutation takes
    none. A private key in the proof bars that key for ever.

    Raises InvalidProofError, InvalidRequestError.
    """
    if request.method not in SAFE_METHODS and request.META.get("QUERY_STRING"):
        raise InvalidRequestError("This endpoint takes no query string.")
    header = request.META.get("HTTP_DPOP")
    try:
        return verify_proof(
            single_header([] if header is None else [header]),
            expected_method=str(request.method),
            expected_url=settings.PUBLIC_URL + request.path,
            access_token=None,
            body=request.body,
            now=int(now.timestamp()),
        )
    except LeakedKeyError as error:
        bar_disclosed_key(key=error.key, actor=actor_of(request), now=now)
        raise


def judge_nonce(request: Request, proof: VerifiedProof, *, required: bool, now: datetime) -> None:
    """Check the proof's nonce, if it has one: it must be the registry's own and recent.

    With `required`, a proof without a nonce is refused. If the nonce is refused or about to end,
    the answer carries `DPoP-Nonce`, whatever the answer is: the agent should use that nonce from
    now on (RFC 9449 section 8.2).

    Raises ProofNonceRequiredError.
    """
    nonces = nonces_of(REGISTRY, now)
    try:
        check_nonce(proof, accepted=nonces.accepted, required=required)
    except ProofNonceRequiredError:
        _send_along(request, nonces.current)
        raise
    _send_along(request, nonces.fresh_for(proof.nonce))


def _send_along(request: Request, nonce: str | None) -> None:
    # Our middleware sends it as a header, whichever view or error handler answers.
    request._request.dpop_nonce = nonce  # type: ignore[attr-defined]  # noqa: SLF001 — our own attribute on DRF's inner request


def spend(proof: VerifiedProof, *, waits: bool = True) -> None:
    """Spend the proof, even if the request fails later; `waits` as for `spend_proof`.

    Raises InvalidProofError(reason="replayed").
    """
    until = datetime.fromtimestamp(proof.spent_until, UTC)
    if not spend_proof(jkt=proof.jkt, jti=proof.jti, until=until, waits=waits):
        raise InvalidProofError(
            "This proof was used before. Make a new one for each call.", reason="replayed"
        )


class AgentProofAuthentication(BaseAuthentication):
    """Header `DPoP`: a proof by the registered key of an agent that is not revoked."""

    def authenticate(self, request: Request) -> tuple[Agent, VerifiedProof] | None:
        forget_caller(request)
        headers = request.META
        if "HTTP_DPOP" not in headers:
            return None
        if "HTTP_AUTHORIZATION" in headers:
            raise InvalidRequestError("Authenticate in one way: a proof, or client id and secret.")
        now = timezone.now()
        proof = read_proof(request, now=now)
        try:
            # Before the proof is spent. A refused nonce only gets older, so the proof can never be
            # accepted later.
            judge_nonce(request, proof, required=False, now=now)
        except ProofNonceRequiredError:
            if (known := self.holder(request, proof.jkt)) is not None:
                # The proof shows which agent calls, so the call does not count as a stranger's.
                enforce_rate_limit(request, known, caller_limits.take)
                request._request.counted = True  # type: ignore[attr-defined]  # noqa: SLF001 — our own attribute on DRF's inner request
            raise
        agent = self.holder(request, proof.jkt)
        if agent is None:
            # Before the proof is spent, so that a stranger's keys cause no write here.
            raise InvalidClientError("No agent is registered with this key.")
        # Check the limit before spending the proof, which is a write. Count the call afterwards: a
        # replayed proof is not the agent's call.
        enforce_rate_limit(request, agent, caller_limits.check)
        self.spend(request, proof)
        enforce_rate_limit(request, agent, caller_limits.take)
        return agent, proof

    def holder(self, request: Request, jkt: str) -> Agent | None:
        """The agent that may call with this key. A subclass may read more in the same query."""
        _ = request
        return holder_of(jkt)

    def spend(self, request: Request, proof: VerifiedProof) -> None:
        """Spend the proof. Raises InvalidProofError."""
        _ = request
        spend(proof)


class ServiceProviderAuthentication(BaseAuthentication):
    """`Authorization: Basic` with client id and secret (RFC 6749 section 2.3.1)."""

    def authenticate(self, request: Request) -> tuple[ServiceProvider, None] | None:
        forget_caller(request)
        header = request.META.get("HTTP_AUTHORIZATION")
        if header is None:
            return None
        client_id, secret = read_basic(header)
        caller = authenticate_service_provider(client_id=client_id, secret=secret)
        enforce_rate_limit(request, caller, caller_limits.take)
        return caller, None

    def authenticate_header(self, request: Request) -> str:
        return 'Basic realm="agentauth"'


def read_basic(header: str) -> tuple[str, str]:
    """Client id and secret of one Basic header. Raises InvalidClientError for anything else.

    RFC 6749 section 2.3.1 form-encodes both, which not every client does. Decoding suits both
    kinds of client: ids are UUIDs and secrets base64url, and neither contains `%` or `+`.
    """
    scheme, _, encoded = header.partition(" ")
    try:
        decoded = base64.b64decode(encoded.strip(), validate=True).decode("ascii")
    except (ValueError, binascii.Error):
        decoded = ""
    client_id, colon, secret = decoded.partition(":")
    if scheme.lower() != "basic" or not colon:
        raise InvalidClientError("Authenticate with client id and secret (Basic).")
    return unquote_plus(client_id), unquote_plus(secret)
