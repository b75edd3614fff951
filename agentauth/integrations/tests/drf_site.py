"""The conformance suite's site in Django REST framework, behind the middleware for Django."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.urls import path
from django.utils.decorators import method_decorator
from rest_framework.exceptions import NotFound
from rest_framework.permissions import AllowAny
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView
from rest_framework.viewsets import ViewSet

from agentauth.integrations.drf import (
    AgentAuthentication,
    AgentPermission,
    protected,
    unprotected,
)
from agentauth.integrations.tests import conformance as suite
from agentauth.integrations.tests import django_site
from agentauth.integrations.tests.conformance import OPEN, SAYS, SECRET, Integration

RESOURCES = frozenset({"/plain", "/undecorated", "/etag", "/missing", "/broken"})


class Plain(BaseRenderer):
    media_type = "text/plain"
    format = "txt"

    def render(self, data: Any, *_given: Any) -> bytes:
        return str(data).encode()


class Protected(APIView):
    authentication_classes = [AgentAuthentication]
    permission_classes = [AgentPermission]
    renderer_classes = [Plain]
    stated: dict[str, str] = {}

    def text(self, request: Any) -> str:
        # As REST framework knows it.
        assert request.user.is_authenticated
        return f"{SECRET}: {request.auth.agent_id}"

    def get(self, request: Request, **_parameters: str) -> Response:
        return Response(self.text(request), headers=self.stated)


class PlainView(Protected):
    requirement = suite.COROUTINE


class Posted(Protected):
    http_method_names = ["post"]

    def post(self, request: Request) -> Response:
        return Response(self.text(request))


class Tagged(PlainView):
    stated = {"ETag": '"v1"', "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}


class Missing(PlainView):
    def get(self, request: Request, **_parameters: str) -> Response:
        raise NotFound(self.text(request))


class Broken(PlainView):
    def get(self, request: Request, **_parameters: str) -> Response:
        raise RuntimeError(self.text(request))


class Calendar(ViewSet, Protected):
    requirement = {"retrieve": suite.CALENDAR}

    def retrieve(self, request: Request, name: str) -> Response:
        return Response(f"{self.text(request)} {name}")


class Numbers(Protected):
    requirement = suite.NUMBERS

    def get(self, request: Request, **parameters: Any) -> Response:
        return Response(f"{self.text(request)} {parameters['number']}")


class Files(Protected):
    requirement = {"GET": suite.FILES}


class Payments(Posted):
    requirement = {"POST": suite.PAYMENTS}

    def post(self, request: Any) -> Response:
        return Response(f"{self.text(request)} {request.data['payee']}")


class Erase(Posted):
    requirement = suite.ERASE


class Kept(Posted):
    requirement = suite.KEPT

    def post(self, request: Any) -> Response:
        return Response("stored" if request.auth.repeated else "new")


class Upload(Posted):
    requirement = suite.UPLOAD

    def post(self, request: Request) -> Response:
        length = 0
        while part := request.stream.read(65_536):
            length += len(part)
        return Response(f"{self.text(request)} {length}")


class Events(Posted):
    requirement = suite.EVENTS


@method_decorator(unprotected, name="dispatch")
class Front(APIView):
    permission_classes = [AllowAny]
    authentication_classes: list[Any] = []
    renderer_classes = [Plain]

    def get(self, _request: Request) -> Response:
        return Response("hello", headers={"Cache-Control": "max-age=3600"})


@protected(suite.COROUTINE)
async def coroutine(request: HttpRequest) -> HttpResponse:
    """REST framework has no asynchronous views; Django's stand beside it."""
    await asyncio.sleep(0)
    return HttpResponse(django_site.text(request))


def saying(stated: str) -> Any:
    return type("Saying", (PlainView,), {"stated": {"Cache-Control": stated}}).as_view()  # type: ignore[attr-defined]


VIEWS: dict[str, Any] = {
    "plain": PlainView.as_view(),
    "undecorated": Protected.as_view(),
    "etag": Tagged.as_view(),
    "missing": Missing.as_view(),
    "broken": Broken.as_view(),
    "calendar/<str:name>": Calendar.as_view({"get": "retrieve"}),
    "numbers/<int:number>": Numbers.as_view(),
    "files/<path:name>": Files.as_view(),
    "payments": Payments.as_view(),
    "erase": Erase.as_view(),
    "kept": Kept.as_view(),
    "upload": Upload.as_view(),
    "v1/events": Events.as_view(),
    "coroutine": coroutine,
    OPEN.lstrip("/"): Front.as_view(),
} | {each.lstrip("/"): saying(stated) for each, (stated, _) in SAYS.items()}
urlpatterns = [path(each, view) for each, view in VIEWS.items()]


@contextmanager
def start(registry_url: str) -> Iterator[str]:
    with django_site.start(registry_url, middleware="AgentAuthMiddleware", urls=__name__) as url:
        yield url


INTEGRATIONS = (Integration("Django REST framework", start, RESOURCES),)
