"""Tokens over HTTP: issue by the agent, revoke by the agent or by the service provider it is for."""

from typing import Any, cast

from django.http import QueryDict
from rest_framework.parsers import FormParser
from rest_framework.request import Request
from rest_framework.response import Response

from agentauth.protocol.dpop import VerifiedProof
from agentauth.protocol.errors import InvalidRequestError
from agentauth.protocol.reading import text
from audit.faults import fault_point
from registry.api.views import NativeView
from registry.authentication import (
    AgentProofAuthentication,
    ServiceProviderAuthentication,
    caller_of,
    judge_nonce,
)
from registry.permissions import IsAgentOrServiceProvider
from registry.services.idempotency import Answer
from registry.services.tokens import (
    IssuedToken,
    issue_token,
    issued_again,
    needs_nonce,
    revoke_presented_token,
    sign_issued,
)


class IssueTokenView(NativeView):
    """`POST /v1/tokens`. What the token holds comes from the grant's row alone; the caller names the grant."""

    proof_error_status = 400

    def post(self, request: Request) -> Response:
        body = self.body(required=["grant_id"])
        # Any text is looked for: what is no id is as unknown as any other (one body for all).
        grant_id = text(body["grant_id"], "grant_id", maximum=255)
        issue = self._issue_once if "Idempotency-Key" in request.headers else self._issue
        issued = issue(grant_id)
        token = sign_issued(issued.claims, self.now)
        fault_point("issue.before_delivery")
        return Response(
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

    def _issue(self, grant_id: str) -> IssuedToken:
        return issue_token(
            agent=self.agent,
            grant_id=grant_id,
            actor=self.actor,
            now=self.now,
            ask_for_nonce=self._ask_for_nonce,
        )

    def _issue_once(self, grant_id: str) -> IssuedToken:
        if needs_nonce(agent=self.agent, grant_id=grant_id):
            # Before a stored answer is given as well.
            self._ask_for_nonce()
        fresh: list[IssuedToken] = []

        def act() -> Answer:
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
