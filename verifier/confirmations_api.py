"""The API of confirmations, for agents that wait for one."""

from typing import Any

from django.utils import timezone
from rest_framework.request import Request
from rest_framework.response import Response

from agentauth.protocol.encoding import timestamp
from agentauth.protocol.errors import NotFoundError
from agentauth.protocol.identifiers import parse_id
from registry.api.base_view import NativeView, query_integer
from registry.api.long_poll import MAX_WAIT_SECONDS, until_decided
from verifier.models import Confirmation
from verifier.services.confirmation_lifecycle import approval_url, asked_for, find_for_agent


class ConfirmationsView(NativeView):
    """`GET /v1/confirmations`: the confirmations of the agent's own transactions, newest first."""

    def get(self, request: Request) -> Response:
        return self.list_page(asked_for(self.agent).order_by("-id"), render_confirmation)


class ConfirmationView(NativeView):
    """`GET /v1/confirmations/{id}?wait=0..30`: its state; waits for a pending one's decision."""

    def get(self, request: Request, confirmation_id: str) -> Response:
        query = self.query("wait")
        wait = query_integer(query.get("wait", "0"), "wait", minimum=0, maximum=MAX_WAIT_SECONDS)
        try:
            wanted = parse_id(confirmation_id)
        except ValueError:
            raise NotFoundError from None
        row = find_for_agent(wanted, self.agent)
        row = until_decided(row, look=lambda: find_for_agent(wanted, self.agent), seconds=wait)
        return Response(render_confirmation(row))


def render_confirmation(row: Confirmation) -> dict[str, Any]:
    """The confirmation as its agent sees it, with its current status."""
    times = {
        "expires_at": row.expires_at,
        "decided_at": row.decided_at,
        "usable_until": row.usable_until,
    }
    return {
        "confirmation_id": str(row.pk),
        "status": row.status_at(timezone.now()),
        "grant_id": str(row.grant_id),
        "grant_version": row.grant_version,
        "action": row.action,
        "idempotency_key": row.idempotency_key,
        "approval_url": approval_url(row),
        **{name: None if at is None else timestamp(at) for name, at in times.items()},
    }
