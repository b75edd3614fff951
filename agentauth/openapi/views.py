"""Serves the OpenAPI document (`/v1/schema/`) and its page (`/docs/`). Both are public."""

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe
from rest_framework.request import Request
from rest_framework.response import Response

from agentauth.openapi import page_context
from agentauth.openapi.document import openapi
from registry.api.discovery import PublicView

KEPT = "public, max-age=300"


class SchemaView(PublicView):
    """`GET /v1/schema/`."""

    def get(self, request: Request) -> Response:
        return Response(openapi(), headers={"Cache-Control": KEPT})


@require_safe
def docs(request: HttpRequest) -> HttpResponse:
    """`GET /docs/`: the same as a page for people; works without JavaScript."""
    shown = {
        "groups": page_context.groups(),
        "types": page_context.types(),
        "errors": page_context.errors(),
        "url": settings.PUBLIC_URL,
    }
    return render(request, "docs.html", shown)
