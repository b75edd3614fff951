"""Grants over HTTP: request, list, wait for the decision, withdraw, revoke."""

from typing import Any

from django.utils import timezone
from rest_framework.request import Request
from rest_framework.response import Response

from agentauth.protocol.behavioural_envelope import parse_envelope
from agentauth.protocol.capability import parse_capabilities
from agentauth.protocol.json_fields import integer, text
from audit.fault_injection import fault_point
from registry.api.base_view import NativeView, empty, query_integer
from registry.api.grant_rendering import render_grant, render_request, storable_answer
from registry.api.long_poll import MAX_WAIT_SECONDS, until_decided
from registry.models import Grant
from registry.services.grant_requests import (
    DEFAULT_LIFE_SECONDS,
    MAX_LIFE_SECONDS,
    MIN_LIFE_SECONDS,
    GrantRequest,
    request_grant,
    withdraw_grant,
)
from registry.services.grants import find_grant, revoke_grant
from registry.services.idempotency import IdempotentAnswer
from registry.services.poll_interval import note_poll
from registry.services.service_providers import find_service_provider

MAX_REASON_CHARACTERS = 500
MAX_REFERENCE_CHARACTERS = 80


class GrantsView(NativeView):
    """`POST` and `GET /v1/grants`."""

    def post(self, request: Request) -> Response:
        body = self.body(
            required=["service_provider", "capabilities"],
            optional=["envelope", "reason", "lifetime_seconds"],
        )
        asked = self._read_request(body)
        answer = self.once(lambda: self._request(asked))
        return Response(render_request(answer), status=answer.status)

    def get(self, request: Request) -> Response:
        grants = self.agent.grants.select_related("agent", "service_provider").order_by("-id")
        return self.list_page(grants, lambda grant: render_grant(grant, self.now))

    def _read_request(self, body: dict[str, Any]) -> GrantRequest:
        reference = text(
            body["service_provider"], "service_provider", maximum=MAX_REFERENCE_CHARACTERS
        )
        return GrantRequest(
            service_provider=find_service_provider(reference),
            capabilities=parse_capabilities(body["capabilities"]),
            envelope=parse_envelope(body.get("envelope", {})),
            seconds=integer(
                body.get("lifetime_seconds", DEFAULT_LIFE_SECONDS),
                "lifetime_seconds",
                minimum=MIN_LIFE_SECONDS,
                maximum=MAX_LIFE_SECONDS,
            ),
            reason=text(body.get("reason", ""), "reason", minimum=0, maximum=MAX_REASON_CHARACTERS),
        )

    def _request(self, asked: GrantRequest) -> IdempotentAnswer:
        grant, created = request_grant(
            agent=self.agent, asked=asked, actor=self.actor, now=self.now
        )
        return storable_answer(grant, now=self.now, status=201 if created else 200)


class GrantView(NativeView):
    """`GET /v1/grants/{id}?wait=0..30`: at once, or once a pending one is decided."""

    def get(self, request: Request, grant_id: str) -> Response:
        query = self.query("wait")
        wait = query_integer(query.get("wait", "0"), "wait", minimum=0, maximum=MAX_WAIT_SECONDS)
        grant = find_grant(grant_id, agent=self.agent)
        if grant.status_at(self.now) == Grant.Status.PENDING:
            note_poll(grant=grant, now=self.now)
            grant = until_decided(
                grant, look=lambda: find_grant(grant_id, agent=self.agent), seconds=wait
            )
        return Response(render_grant(grant, timezone.now()))


class WithdrawGrantView(NativeView):
    """`POST /v1/grants/{id}/withdraw`."""

    def post(self, request: Request, grant_id: str) -> Response:
        self.body()
        self.once(lambda: self._withdraw(grant_id))
        return empty()

    def _withdraw(self, grant_id: str) -> IdempotentAnswer:
        withdraw_grant(grant=find_grant(grant_id, agent=self.agent), actor=self.actor, now=self.now)
        return IdempotentAnswer(204)


class RevokeGrantView(NativeView):
    """`POST /v1/grants/{id}/revoke`."""

    def post(self, request: Request, grant_id: str) -> Response:
        self.body()
        self.once(lambda: self._revoke(grant_id))
        fault_point("revoke.before_delivery")
        return empty()

    def _revoke(self, grant_id: str) -> IdempotentAnswer:
        revoke_grant(grant=find_grant(grant_id, agent=self.agent), actor=self.actor, now=self.now)
        return IdempotentAnswer(204)
