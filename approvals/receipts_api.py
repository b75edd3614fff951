"""The receipt of a decision, for the agent, its human, and service providers that may audit."""

from rest_framework.authentication import BaseAuthentication
from rest_framework.permissions import BasePermission
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from agentauth.protocol.encoding import timestamp
from agentauth.protocol.errors import InvalidClientError, NotFoundError
from agentauth.protocol.identifiers import parse_id
from approvals.services.passkey_signature_flow import receipt_of
from approvals.services.text_erasure import is_for_another
from registry.api.base_view import NativeView
from registry.authentication import AgentProofAuthentication, ServiceProviderAuthentication
from registry.models import Agent, Grant, Human, ServiceProvider
from registry.services.agent_owners import owns


class SessionAuthentication(BaseAuthentication):
    """Accept the signed-in human's session; needs no CSRF check because the view only reads."""

    def authenticate(self, request: Request) -> tuple[Human, None] | None:
        human = getattr(request._request, "user", None)  # noqa: SLF001 — DRF's documented inner request
        return (human, None) if isinstance(human, Human) else None


class MayReadReceipts(BasePermission):
    """Any authenticated caller; `get` checks whether the receipt is theirs to read."""

    def has_permission(self, request: Request, view: APIView) -> bool:
        if request.user is None:
            raise InvalidClientError(
                "Authenticate with a proof, or with client id and secret (Basic)."
            )
        return True


class ReceiptView(NativeView):
    """`GET /v1/grants/{id}/receipt` (docs/protocol.md section 6)."""

    authentication_classes = [
        # First: the other two reset the user that the session set.
        SessionAuthentication,
        AgentProofAuthentication,
        ServiceProviderAuthentication,
    ]
    permission_classes = [MayReadReceipts]

    def get(self, request: Request, grant_id: str) -> Response:
        self.refuse_query()
        reader: object = request.user
        grant = readable_grant(grant_id, reader)
        receipt = receipt_of("approval", str(grant.pk))
        # A receipt holds the signer's passkey. An administrator may have denied the request, and
        # agents must not learn that person's passkey.
        for_agent = receipt is not None and (
            receipt.human_id == grant.agent.human_id or is_for_another(receipt)
        )
        if receipt is None or (isinstance(reader, Agent) and not for_agent):
            raise NotFoundError("This request has no receipt yet.")
        return Response(
            {
                "grant_id": receipt.subject,
                "decision": receipt.decision,
                "decided_at": timestamp(receipt.created_at),
                "receipt": receipt.compact,
            }
        )


def readable_grant(grant_id: str, reader: object) -> Grant:
    """The grant, if `reader` may read its receipt.

    Raises NotFoundError, the same whether it is unknown or another's, so that ids cannot be probed.
    """
    try:
        grant = Grant.objects.select_related("agent").filter(pk=parse_id(grant_id)).first()
    except ValueError:
        grant = None
    allowed = grant is not None and (
        (isinstance(reader, Agent) and grant.agent_id == reader.pk)
        or (
            isinstance(reader, Human) and (grant.human_id == reader.pk or owns(reader, grant.agent))
        )
        or (isinstance(reader, ServiceProvider) and reader.may_audit)
    )
    if grant is None or not allowed:
        raise NotFoundError
    return grant
