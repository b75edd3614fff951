"""Catalogues over HTTP: a service provider proposes a version and reads its status."""

from typing import Any

from django.conf import settings
from rest_framework.request import Request
from rest_framework.response import Response

from agentauth.protocol.encoding import read_object, timestamp
from registry.api.base_view import NativeView
from registry.authentication import ServiceProviderAuthentication, caller_of
from registry.models import CatalogueVersion, ServiceProvider
from registry.permissions import IsServiceProvider
from registry.services.catalogues import propose_catalogue, ref_of


class CatalogueView(NativeView):
    """`POST /v1/catalogue` proposes a version; `GET` returns the approved and the proposed one."""

    authentication_classes = [ServiceProviderAuthentication]
    permission_classes = [IsServiceProvider]

    @property
    def provider(self) -> ServiceProvider:
        """The calling service provider. Permissions admit no other caller."""
        caller = caller_of(self.request)
        if not isinstance(caller, ServiceProvider):
            raise TypeError("this view is for service providers")
        return caller

    def get(self, request: Request) -> Response:
        self.refuse_query()
        body: dict[str, Any] = {"approved": None, "proposed": None}
        rows = CatalogueVersion.objects.filter(service_provider=self.provider)
        for row in rows.filter(status__in=body):
            body[row.status] = render(row) | {"catalogue": read_object(row.document)}
        return Response(body)

    def post(self, request: Request) -> Response:
        self.refuse_query()
        body = self.body(required=["catalogue"])
        row, is_new = propose_catalogue(
            service_provider=self.provider,
            document=body["catalogue"],
            actor=self.actor,
            now=self.now,
        )
        return Response(render(row), status=201 if is_new else 200)


def render(row: CatalogueVersion) -> dict[str, Any]:
    """A version as JSON, without its document, which this release may be unable to read."""
    return {
        **ref_of(row).to_json(),
        "status": row.status,
        "proposed_at": timestamp(row.proposed_at),
        "decided_at": timestamp(row.decided_at) if row.decided_at else None,
        "approval_url": f"{settings.PUBLIC_URL}/catalogues/{row.pk}/",
    }
