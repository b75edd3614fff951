"""The verifier's API: decisions for service providers, and confirmations for waiting agents."""

from typing import Any, cast

from django.core.exceptions import RequestDataTooBig
from django.utils import timezone
from rest_framework.parsers import FormParser
from rest_framework.request import Request
from rest_framework.response import Response

from agentauth.protocol.encoding import timestamp
from agentauth.protocol.errors import NotFoundError
from agentauth.protocol.identifiers import parse_id
from agentauth.protocol.json_fields import items
from audit.fault_injection import fault_point
from registry import rate_limits
from registry.api.base_view import NativeView, query_integer
from registry.api.long_poll import MAX_WAIT_SECONDS, until_decided
from registry.api.tokens import presented_token
from registry.authentication import ServiceProviderAuthentication
from registry.models import ServiceProvider
from registry.permissions import IsServiceProvider
from verifier.models import Confirmation
from verifier.requests import parse_delivery, parse_verify_request
from verifier.services.batch import MAX_REQUESTS
from verifier.services.confirmation_lifecycle import approval_url, asked_for, find_for_agent
from verifier.services.web_verification import introspect, verify, verify_batch


class VerifyView(NativeView):
    """`POST /v1/verify`: may this agent do that now? 200 for yes and no (protocol.md section 8)."""

    authentication_classes = [ServiceProviderAuthentication]
    permission_classes = [IsServiceProvider]

    def post(self, request: Request) -> Response:
        self.query()
        provider = cast("ServiceProvider", request.user)
        asked = parse_verify_request(request.data)
        provider_key = parse_delivery(
            request.headers.get("Idempotency-Key"),
            service_provider_id=provider.pk,
            body=request.body,
            operation_key=asked.operation_key,
        )
        answer = verify(
            service_provider=provider,
            request=asked,
            provider_key=provider_key,
            actor=self.actor,
            now=self.now,
        )
        fault_point("verify.before_delivery")
        return Response(dict(answer.body), headers={"Cache-Control": "no-store"})


class VerifyBatchView(NativeView):
    """`POST /v1/verify/batch`: up to 256 requests, answered in order and each by itself."""

    authentication_classes = [ServiceProviderAuthentication]
    permission_classes = [IsServiceProvider]
    # Read by the parser.
    max_body_bytes = 1024 * 1024

    def post(self, request: Request) -> Response:
        self.query()
        body = self.body(required=["requests"])
        provider = cast("ServiceProvider", request.user)
        asked = items(body["requests"], "requests", maximum=MAX_REQUESTS)
        # Authentication counted one call. `charge` never refuses: a batch larger than the whole
        # allowance could otherwise never pass.
        rate_limits.charge(rate_limits.SERVICE_PROVIDER, str(provider.pk), len(asked) - 1)
        answers = verify_batch(
            service_provider=provider,
            requests=asked,
            actor=self.actor,
            clock=timezone.now,
        )
        fault_point("verify.before_delivery")
        return Response({"results": answers}, headers={"Cache-Control": "no-store"})

    def read_body(self, request: Request) -> None:
        """Read the only body that may exceed Django's limit; a chunked one is not read."""
        inner = request._request  # noqa: SLF001 — DRF's documented inner request
        if int(inner.META.get("CONTENT_LENGTH") or 0) > self.max_body_bytes:
            raise RequestDataTooBig
        # Django's cache of the body: later readers find it there.
        inner._body = inner.read(self.max_body_bytes)  # noqa: SLF001 — as above


class IntrospectView(NativeView):
    """`POST /v1/introspect` (RFC 7662, form-encoded): the claims of a valid token of the caller."""

    authentication_classes = [ServiceProviderAuthentication]
    permission_classes = [IsServiceProvider]
    parser_classes = [FormParser]

    def post(self, request: Request) -> Response:
        # Refuse a query string: a token in a URL would end up in the logs of every proxy.
        self.query()
        answer = introspect(
            service_provider=cast("ServiceProvider", request.user),
            untrusted_token=presented_token(request),
            now=self.now,
        )
        return Response(answer, headers={"Cache-Control": "no-store"})


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
