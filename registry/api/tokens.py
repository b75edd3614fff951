"""Tokens over HTTP: issue by the agent, revoke by the agent or by the service provider it is for."""

from typing import Any, cast

from django.http import HttpResponse, QueryDict
from rest_framework.parsers import FormParser
from rest_framework.request import Request
from rest_framework.response import Response

from agentauth.protocol.dpop import VerifiedProof
from agentauth.protocol.encoding import read_json
from agentauth.protocol.errors import EncodingError, InvalidRequestError
from agentauth.protocol.reading import text
from audit.faults import fault_point
from kms.delegation import turn_to_sign
from registry.api.views import NativeView
from registry.authentication import (
    AgentProofAuthentication,
    ServiceProviderAuthentication,
    caller_of,
    judge_nonce,
    spend,
)
from registry.models import Agent
from registry.permissions import IsAgentOrServiceProvider
from registry.services.idempotency import Answer
from registry.services.tokens import (
    Basis,
    IssuedToken,
    caller_and_basis,
    issue_token,
    issued_again,
    revoke_presented_token,
    sign_issued,
)


class GrantProofAuthentication(AgentProofAuthentication):
    """Reads what the grant that the body names rests on with the agent, in one query."""

    def holder(self, request: Request, jkt: str) -> Agent | None:
        try:
            named = read_json(request.body)
        except EncodingError:
            # The view says so, once it is known who calls.
            named = None
        grant_id = named.get("grant_id") if isinstance(named, dict) else None
        agent, basis = caller_and_basis(jkt, grant_id if isinstance(grant_id, str) else "")
        request._request.basis = basis  # type: ignore[attr-defined]  # noqa: SLF001 — our own attribute on DRF's inner request
        return agent

    def spend(self, request: Request, proof: VerifiedProof) -> None:
        # A token comes after the commit of its row; but for an earlier one that is given again under its Idempotency-Key.
        spend(proof, waits="HTTP_IDEMPOTENCY_KEY" in request.META)


class IssueTokenView(NativeView):
    """`POST /v1/tokens`. What the token holds comes from the grant's row alone; the caller names the grant."""

    authentication_classes = [GrantProofAuthentication]
    proof_error_status = 400

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        # First of all: what cannot be signed costs nobody a proof, and us next to nothing.
        with turn_to_sign():
            super().initial(request, *args, **kwargs)

    def post(self, request: Request) -> HttpResponse:
        body = self.body(required=["grant_id"])
        # Any text is looked for: what is no id is as unknown as any other (one body for all).
        grant_id = text(body["grant_id"], "grant_id", maximum=255)
        basis = self.request._request.basis  # type: ignore[attr-defined]  # noqa: SLF001 — as above
        if basis is not None and basis.service_provider.require_nonce:
            # Before a stored answer is given as well.
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
        """Where the grant's service provider asks for nonces, ask too. Raises ProofNonceRequiredError."""
        proof = cast("VerifiedProof", self.request.auth)
        if proof.nonce is None:
            judge_nonce(self.request, proof, required=True, now=self.now)

    def _issue(self, grant_id: str, basis: Basis | None = None) -> IssuedToken:
        return issue_token(agent=self.agent, grant_id=grant_id, actor=self.actor, now=self.now, basis=basis)

    def _issue_once(self, grant_id: str) -> IssuedToken:
        fresh: list[IssuedToken] = []

        def act() -> Answer:
            # The first call with the key may have been waited for: what was read with the caller is old then.
            fresh.append(self._issue(grant_id))
            return Answer(201, token_jti=fresh[0].jti)

        answer = self.once(act)
        return fresh[0] if fresh else issued_again(answer.token_jti, self.now)


class RevokeTokenView(NativeView):
    """`POST /v1/revoke` (RFC 7009, form-encoded): 200 also for a token that is unknown or another's."""

    authentication_classes = [AgentProofAuthentication, ServiceProviderAuthentication]
    permission_classes = [IsAgentOrServiceProvider]
    parser_classes = [FormParser]

    def post(self, request: Request) -> Response:
        # A token in an address ends up in the logs of everything between.
        self.query()
        revoke_presented_token(
            untrusted_token=presented_token(request),
            caller=caller_of(request),
            actor=self.actor,
            now=self.now,
        )
        fault_point("revoke.before_delivery")
        return Response(status=200)


def presented_token(request: Request) -> str:
    """The one `token` of a form (RFC 7009 section 2.1, RFC 7662 section 2.1); other parameters are ignored.

    Raises InvalidRequestError.
    """
    parameters: Any = request.data
    # Without a body there is nothing to parse, and a plain dict stands here.
    tokens: list[str] = parameters.getlist("token") if isinstance(parameters, QueryDict) else []
    if len(tokens) != 1 or not tokens[0]:
        raise InvalidRequestError("Send one parameter token, form-encoded.")
    return tokens[0]
