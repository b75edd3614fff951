"""The conformance suite's site in Django (sites.py)."""

import asyncio
import json
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any

from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.http import Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.middleware.cache import CacheMiddleware
from django.template import engines
from django.template.response import TemplateResponse
from django.test import override_settings
from django.urls import path
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.cache import cache_page
from django.views.decorators.http import condition

from agentauth.integrations import django_decorators as guard
from agentauth.integrations.django import decision, protected, unprotected
from agentauth.integrations.tests.conformance import (
    AUDIENCE,
    CALENDAR,
    COROUTINE,
    ERASE,
    EVENTS,
    FILES,
    KEPT,
    NUMBERS,
    OPEN,
    PAYMENTS,
    RESOURCES,
    SAYS,
    SECRET,
    UPLOAD,
    Integration,
    served_by_asgi,
    served_by_wsgi,
)
from agentauth.sdk import Action

READ: Any = protected(Action("read", "calendar"))
CHANGED = datetime(2026, 1, 1, tzinfo=UTC)
# `cache_page` takes any duration; no test of the suite takes this long.
cached = cache_page(3600)
conditional = condition(lambda _request: '"v1"', lambda _request: CHANGED)


def text(request: HttpRequest) -> str:
    return f"{SECRET}: {decision(request).agent_id}"


def answer(request: HttpRequest) -> HttpResponse:
    return HttpResponse(text(request))


def tagged(request: HttpRequest) -> HttpResponse:
    headers = {"ETag": '"v1"', "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}
    return HttpResponse(text(request), headers=headers)


def saying(request: HttpRequest, stated: str) -> HttpResponse:
    return HttpResponse(text(request), headers={"Cache-Control": stated})


def rendered(request: HttpRequest) -> HttpResponse:
    return TemplateResponse(request, engines["django"].from_string(text(request)))


def streamed(request: HttpRequest) -> HttpResponseBase:
    return StreamingHttpResponse(iter([text(request)[:9], text(request)[9:]]))


def missing(request: HttpRequest) -> HttpResponse:
    raise Http404(text(request))


def broken(request: HttpRequest) -> HttpResponse:
    raise RuntimeError(text(request))


def dispatching(request: HttpRequest) -> Any:
    return READ(answer)(request)


@method_decorator(READ, name="dispatch")
class Page(View):
    def get(self, request: HttpRequest) -> HttpResponse:
        return answer(request)


VIEWS: dict[str, Callable[..., Any]] = {
    "/plain": READ(answer),
    "/undecorated": answer,
    "/class": Page.as_view(),
    "/cache-outside": cached(READ(answer)),
    "/cache-inside": READ(cached(answer)),
    "/cache-around-undecorated": cached(answer),
    "/within-open": cached(unprotected(dispatching)),
    "/etag": READ(tagged),
    "/condition-outside": conditional(READ(answer)),
    "/template": cached(READ(cached(rendered))),
    "/stream": cached(READ(streamed)),
    "/missing": cached(READ(missing)),
    "/broken": cached(READ(broken)),
} | {
    each: cached(READ(cached(partial_saying)))
    for each, partial_saying in (
        (each, lambda request, stated=stated: saying(request, stated)) for each, (stated,
            _) in SAYS.items()
    )
}  # fmt: skip
urlpatterns = [path(each.lstrip("/"), view) for each, view in VIEWS.items()]


@protected(CALENDAR)
def calendar(request: HttpRequest, name: str) -> HttpResponse:
    return HttpResponse(f"{text(request)} {name}")


@protected(NUMBERS)
def numbers(request: HttpRequest, number: int) -> HttpResponse:
    return HttpResponse(f"{text(request)} {number}")


@protected(FILES)
def files(request: HttpRequest, name: str) -> HttpResponse:
    return answer(request)


@protected(PAYMENTS)
def payments(request: HttpRequest) -> HttpResponse:
    return HttpResponse(f"{text(request)} {json.loads(request.body)['payee']}")


@protected(KEPT)
def kept(request: HttpRequest) -> HttpResponse:
    return HttpResponse("stored" if decision(request).repeated else "new")


@protected(UPLOAD)
def upload(request: HttpRequest) -> HttpResponse:
    length = 0
    while part := request.read(65_536):
        length += len(part)
    return HttpResponse(f"{text(request)} {length}")


@protected(COROUTINE)
async def coroutine(request: HttpRequest) -> HttpResponse:
    await asyncio.sleep(0)
    return answer(request)


@unprotected
async def open_coroutine(_request: HttpRequest) -> HttpResponse:
    return HttpResponse()


urlpatterns += [
    path("calendar/<str:name>", calendar),
    path("numbers/<int:number>", numbers),
    path("files/<path:name>", files),
    path("payments", payments),
    path("erase", protected(ERASE)(answer)),
    path("kept", kept),
    path("upload", upload),
    path("v1/events", protected(EVENTS)(answer)),
    path("coroutine", coroutine),
    path("open-coroutine", open_coroutine),
]


@cached
@unprotected
def front(_request: HttpRequest) -> HttpResponse:
    return HttpResponse(uuid.uuid4().hex)


urlpatterns.append(path(OPEN.lstrip("/"), front))


def disguised(get_response: Callable[[HttpRequest], HttpResponseBase]) -> Callable[..., Any]:
    """A cache middleware that cannot be recognised as one of Django's classes."""
    hidden = CacheMiddleware(get_response)
    return lambda request: hidden(request)  # noqa: PLW0108 — a function, as the name says


@contextmanager
def start(
    registry_url: str,
    *,
    middleware: str,
    asgi: bool = False,
    urls: str = __name__,
    before: tuple[str, ...] = (),
    after: tuple[str, ...] = (),
    unchecked: tuple[str, ...] = (),
) -> Iterator[str]:
    """The site through Django's handler, with an empty cache of its own."""
    cache = {
        "BACKEND": "django.core.cache.backends.locmem.LocMemCache",
        "LOCATION": uuid.uuid4().hex,
    }
    usual = (
        "django.middleware.http.ConditionalGetMiddleware",
        "django.middleware.gzip.GZipMiddleware",
        "django.middleware.common.CommonMiddleware",
    )
    with override_settings(
        ROOT_URLCONF=urls,
        ALLOWED_HOSTS=["api.sp.example"],
        APPEND_SLASH=False,
        # Not those of the project that the tests run in.
        REST_FRAMEWORK={},
        CACHES={"default": cache},
        MIDDLEWARE=[*before, f"agentauth.integrations.django.{middleware}", *usual, *after],
        AGENTAUTH={
            "REGISTRY_URL": registry_url,
            "CLIENT_ID": "id",
            "CLIENT_SECRET": "secret",
            "AUDIENCE": AUDIENCE,
            "UNCHECKED_MIDDLEWARE": unchecked,
        },
    ):
        served = served_by_asgi(ASGIHandler()) if asgi else served_by_wsgi(WSGIHandler())
        with served as url:
            try:
                yield url
            finally:
                guard._client(registry_url, "id", "secret").close()
                guard._client.cache_clear()


def starting(**arguments: Any) -> Callable[[str], AbstractContextManager[str]]:
    return partial(start, **arguments)


CACHES = ("UpdateCacheMiddleware", "FetchFromCacheMiddleware", "CacheMiddleware")
SITE_CACHE = {each: (f"django.middleware.cache.{each}",) for each in CACHES}


OPEN_OTHERWISE = {
    "a forgotten route is closed": "this middleware leaves other views open",
    "a path without a route is closed": "this middleware leaves paths without a view open",
}


def integration(middleware: str, resources: set[str], *, asgi: bool = False) -> Integration:
    made = partial(starting, middleware=middleware, asgi=asgi)
    in_front = {f"{each} first": made(before=SITE_CACHE[each]) for each in CACHES}
    in_front |= {f"{each} last": made(after=SITE_CACHE[each]) for each in CACHES}
    name = f"Django, {middleware}{', ASGI' if asgi else ''}"
    out = OPEN_OTHERWISE if middleware == "ProtectedMiddleware" else {}
    return Integration(name, made(), frozenset(RESOURCES) & resources, in_front, out)


EVERY = set(RESOURCES)
INTEGRATIONS = (
    integration("AgentAuthMiddleware", EVERY),
    # Here an unmarked view is open.
    integration("ProtectedMiddleware", EVERY - {"/undecorated", "/cache-around-undecorated"}),
    # Under ASGI, Django warns of a view that streams and is not asynchronous.
    integration("AgentAuthMiddleware", EVERY - {"/stream"}, asgi=True),
)


def check(*middleware: str) -> "subprocess.CompletedProcess[str]":
    """Run `manage.py check` in a service provider's project with this middleware."""
    project = """if True:
        from django.conf import settings
        import sys
        ours = ["agentauth.integrations.django.Checks"]
        settings.configure(INSTALLED_APPS=ours, MIDDLEWARE=sys.argv[1:])
        import django
        from django.core.management import call_command
        django.setup()
        call_command("check")
    """
    command = [sys.executable, "-c", project, *middleware]
    return subprocess.run(command, capture_output=True, text=True, check=False)
