"""Service providers over HTTP: what an agent may learn about one before it requests a grant."""

from rest_framework.request import Request
from rest_framework.response import Response

from registry.api.base_view import NativeView
from registry.services.service_providers import find_service_provider


class ServiceProviderView(NativeView):
    """`GET /v1/service-providers/{id or slug}`: its name, audience and allow-list."""

    def get(self, request: Request, reference: str) -> Response:
        # Refuse all query parameters.
        self.refuse_query()
        found = find_service_provider(reference)
        return Response(
            {
                "id": str(found.id),
                "slug": found.slug,
                "name": found.name,
                "audience": found.audience,
                "allowed": found.allowed,
                "require_nonce": found.require_nonce,
            }
        )
