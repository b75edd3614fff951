"""The description over HTTP: as OpenAPI for programs, and as a page for people. Both are public and may be kept."""

from rest_framework.request import Request
from rest_framework.response import Response

from agentauth.openapi.document import openapi
from registry.api.discovery import PublicView

KEPT = "public, max-age=300"


class SchemaView(PublicView):
    """`GET /v1/schema/`."""

    def get(self, request: Request) -> Response:
        return Response(openapi(), headers={"Cache-Control": KEPT})
