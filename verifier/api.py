"""The verifier's API for service providers: verify, and introspection."""

from typing import cast

from django.core.exceptions import RequestDataTooBig
from django.utils import timezone
from rest_framework.parsers import FormParser
from rest_framework.request import Request
from rest_framework.response import Response

from agentauth.protocol.json_fields import items
from audit.fault_injection import fault_point
from registry import caller_limits
from registry.api.base_view import NativeView
from registry.api.tokens import presented_token
from registry.authentication import ServiceProviderAuthentication
from registry.models import ServiceProvider
from registry.permissions import IsServiceProvider
from verifier.requests import parse_delivery, parse_verify_request
from verifier.services.batch import MAX_REQUESTS
from verifier.services.web_verification import introspect, verify, verify_batch


class VerifyView(NativeView):
    """`POST /v1/verify`: may this agent do that now? 200 for yes and no (protocol.md section 8)."""

    authentication_classes = [ServiceProviderAuthentication]
    permission_classes = [IsServiceProvider]

    def post(self, request: Request) -> Response:
        self.refuse_query()
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
    # The limit for the parser and for `read_body`.
    max_body_bytes = 1024 * 1024

    def post(self, request: Request) -> Response:
        self.refuse_query()
        body = self.body(required=["requests"])
        provider = cast("ServiceProvider", request.user)
        asked = items(body["requests"], "requests", maximum=MAX_REQUESTS)
        # Authentication counted one call. `charge` never refuses: a batch larger than the whole
        # allowance could otherwise never pass.
        caller_limits.charge(caller_limits.SERVICE_PROVIDER, str(provider.pk), len(asked) - 1)
        answers = verify_batch(
            service_provider=provider,
            requests=asked,
            actor=self.actor,
            clock=timezone.now,
        )
        fault_point("verify.before_delivery")
        return Response({"results": answers}, headers={"Cache-Control": "no-store"})

    def read_body(self, request: Request) -> None:
        """Read the one body that may exceed Django's limit.

        Without a Content-Length (a chunked body) it is read as empty.
        """
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
        # A token in a URL would end up in the logs of every proxy.
        self.refuse_query()
        answer = introspect(
            service_provider=cast("ServiceProvider", request.user),
            untrusted_token=presented_token(request),
            now=self.now,
        )
        return Response(answer, headers={"Cache-Control": "no-store"})
