"""The verifier over HTTP: agents wait for a human's confirmation of one transaction."""

import time
import uuid
from typing import Any

from django.utils import timezone
from rest_framework.request import Request
from rest_framework.response import Response

from agentauth.protocol.encoding import timestamp
from agentauth.protocol.errors import NotFoundError
from registry.api.grants import LONG_POLLS, LOOK_EVERY_SECONDS, MAX_WAIT_SECONDS
from registry.api.views import NativeView, query_integer
from verifier.models import Confirmation
from verifier.services.confirmations import approval_url, find_for_agent


class ConfirmationView(NativeView):
    """`GET /v1/confirmations/{id}?wait=0..30`: the state now, or as soon as a pending one is decided."""

    def get(self, request: Request, confirmation_id: str) -> Response:
        query = self.query("wait")
        wait = query_integer(query.get("wait", "0"), "wait", minimum=0, maximum=MAX_WAIT_SECONDS)
        row = self._find(confirmation_id)
        if wait and row.status_at(self.now) == Confirmation.Status.PENDING:
            row = self._wait(row, wait)
        return Response(render_confirmation(row))

    def _find(self, confirmation_id: str) -> Confirmation:
        try:
            wanted = uuid.UUID(confirmation_id)
        except ValueError:
            raise NotFoundError("There is nothing here, or it is not yours.") from None
        return find_for_agent(wanted, self.agent)

    def _wait(self, row: Confirmation, seconds: int) -> Confirmation:
        # The same few slots as the other long polls: waiting agents never hold the threads others need.
        if not LONG_POLLS.acquire(blocking=False):
            return row
        try:
            deadline = time.monotonic() + seconds
            while (
                time.monotonic() < deadline and row.status_at(timezone.now()) == Confirmation.Status.PENDING
            ):
                time.sleep(min(LOOK_EVERY_SECONDS, max(0.0, deadline - time.monotonic())))
                row = find_for_agent(row.pk, self.agent)
        finally:
            LONG_POLLS.release()
        return row


def render_confirmation(row: Confirmation) -> dict[str, Any]:
    """The confirmation as its agent sees it, in the state it is in now."""
    times = {"expires_at": row.expires_at, "decided_at": row.decided_at, "usable_until": row.usable_until}
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
