"""Tokens over HTTP: issued to the agent; revoked by the agent or the token's service provider."""

from typing import Any, cast

from django.http import HttpResponse, QueryDict
from rest_framework.parsers import FormParser
from rest_framework.request import Request
from rest_framework.response import Response

from agentauth.protocol.dpop import VerifiedProof
from agentauth.protocol.encoding import read_json
from agentauth.protocol.errors import EncodingError, InvalidRequestError
from agentauth.protocol.json_fields import text
from audit.fault_injection import fault_point
from kms.token_signer import turn_to_sign
from registry.api.base_view import NativeView
from registry.authentication import (
    AgentProofAuthentication,
    ServiceProviderAuthentication,
    caller_of,
    judge_nonce,
    spend,
)
from registry.models import Agent
from registry.permissions import IsAgentOrServiceProvider
from registry.services.idempotency import IdempotentAnswer
from registry.services.tokens import (
    GrantRows,
    IssuedToken,
    caller_and_basis,
    issue_token,
    issued_again,
    revoke_presented_token,
    sign_issued,
)


class GrantProofAuthentication(AgentProofAuthentication):
    """Reads the agent and, in the same query, the grant named by the body and its rows."""

    def holder(self, request: Request, jkt: str) -> Agent | None:
        try:
            named = read_json(request.body)
        except EncodingError:
            # The view reports it, once the caller is known.
            named = None
        grant_id = named.get("grant_id") if isinstance(named, dict) else None
        agent, basis = caller_and_basis(jkt, grant_id if isinstance(grant_id, str) else "")
        request._request.basis = basis  # type: ignore[attr-defined]  # noqa: SLF001 — our own attribute on DRF's inner request
        return agent

    def spend(self, request: Request, proof: VerifiedProof) -> None:
        # No wait for the disk: the token is delivered only after its row's commit, which waits. Not
        # so under an Idempotency-Key: an earlier token may be repeated without such a commit.
        spend(proof, waits="HTTP_IDEMPOTENCY_KEY" in request.META)


class IssueTokenView(NativeView):
    """`POST /v1/tokens`. The caller names the grant; the token's contents come from its row."""

    authentication_classes = [GrantProofAuthentication]
    proof_error_status = 400

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        # Before authentication: if the key service would refuse to sign, the client keeps its proof
        # and the call costs us next to nothing.
        with turn_to_sign():
            super().initial(request, *args, **kwargs)

    def post(self, request: Request) -> HttpResponse:
        body = self.body(required=["grant_id"])
        # Text that is not an id gets the same answer as an unknown grant.
        grant_id = text(body["grant_id"], "grant_id", maximum=255)
        basis = self.request._request.basis  # type: ignore[attr-defined]  # noqa: SLF001 — as above
        if basis is not None and basis.service_provider.require_nonce:
            # Also before a stored answer is repeated.
            self._ask_for_nonce()
        if "HTTP_IDEMPOTENCY_KEY" in request.META:
            issued = self._issue_once(grant_id)
        else:
            issued = self._issue(grant_id, basis)
        token = sign_issued(issued.claims, self.now)
        fault_point("issue.before_delivery")
        return self.answer(
            {
                "access_token": token,
                "token_type": "DPoP",
                "expires_in": issued.expires_in,
                "grant_id": grant_id,
            },
            status=201,
        )

    def _ask_for_nonce(self) -> None:
        """Require a nonce if the grant's service provider does. Raises ProofNonceRequiredError."""
        proof = cast("VerifiedProof", self.request.auth)
        if proof.nonce is None:
            judge_nonce(self.request, proof, required=True, now=self.now)

    def _issue(self, grant_id: str, basis: GrantRows | None = None) -> IssuedToken:
        return issue_token(
            agent=self.agent, grant_id=grant_id, actor=self.actor, now=self.now, basis=basis
        )

    def _issue_once(self, grant_id: str) -> IssuedToken:
        fresh: list[IssuedToken] = []

        def act() -> IdempotentAnswer:
            # This call may have waited for the first one with the key: `basis` may be outdated.
            fresh.append(self._issue(grant_id))
            return IdempotentAnswer(201, token_jti=fresh[0].jti)

        answer = self.once(act)
        return fresh[0] if fresh else issued_again(answer.token_jti, self.now)


class RevokeTokenView(NativeView):
    """`POST /v1/revoke` (RFC 7009, form-encoded): 200 also for an unknown or another's token."""

    authentication_classes = [AgentProofAuthentication, ServiceProviderAuthentication]
    permission_classes = [IsAgentOrServiceProvider]
    parser_classes = [FormParser]

    def post(self, request: Request) -> Response:
        # A token in a URL would end up in the logs of every proxy on the way.
        self.refuse_query()
        revoke_presented_token(
            untrusted_token=presented_token(request),
            caller=caller_of(request),
            actor=self.actor,
            now=self.now,
        )
        fault_point("revoke.before_delivery")
        return Response(status=200)


def presented_token(request: Request) -> str:
    """The one `token` of a form (RFC 7009 section 2.1, RFC 7662 section 2.1).

    Other parameters are ignored. Raises InvalidRequestError.
    """
    parameters: Any = request.data
    # Without a body DRF parses nothing, and this is a plain dict.
    tokens: list[str] = parameters.getlist("token") if isinstance(parameters, QueryDict) else []
    if len(tokens) != 1 or not tokens[0]:
        raise InvalidRequestError("Send one parameter token, form-encoded.")
    return tokens[0]
