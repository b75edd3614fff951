"""Sends the requests of Django's test client over the wire to the installed system.

Only the transport differs, so contract tests run there unchanged. Every answer is checked against
its description and the header table.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from http.cookies import SimpleCookie
from typing import Any

import httpx
import pytest
from django.conf import settings
from django.http import HttpResponse
from django.test import Client

from tests import conformance
from tests.asking import answered
from tests.production import headers
from tests.production.registry import ProductionRegistry

SAFE = {"GET", "HEAD", "OPTIONS"}


@contextmanager
def over_the_wire(registry: ProductionRegistry) -> Iterator[None]:
    """All Django clients of this process talk to `registry`."""
    with (
        httpx.Client(base_url=registry.url, timeout=30) as http,
        pytest.MonkeyPatch.context() as patch,
    ):

        def request(self: Client, **told: Any) -> Any:
            return _asked(self, http, told)

        patch.setattr(Client, "request", request)
        yield


def _asked(client: Client, http: httpx.Client, told: dict[str, Any]) -> Any:
    environ = client._base_environ(**told)  # type: ignore[attr-defined]  # Django's own
    method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
    sent = {
        name.removeprefix("HTTP_").replace("_", "-"): value
        for name, value in environ.items()
        if name.startswith("HTTP_") and name != "HTTP_COOKIE"
    }
    if "CONTENT_TYPE" in environ:
        sent["Content-Type"] = environ["CONTENT_TYPE"]
    # One of our pages would send the CSRF token it was served with.
    if method not in SAFE and "HTTP_ORIGIN" in environ and not path.startswith("/v1/"):
        sent["X-CSRFToken"] = _csrf(client, http)
    query = environ.get("QUERY_STRING", "")
    length = int(environ.get("CONTENT_LENGTH") or 0)
    url = f"{path}?{query}" if query else path
    content = environ["wsgi.input"].read(length) if length else b""
    headers_sent = sent | _cookies(client)
    # No scenario here provokes a 503: it comes from a busy machine.
    got = answered(lambda: http.request(method, url, content=content, headers=headers_sent))
    http.cookies.clear()
    return _answer(client, told, got)


def _csrf(client: Client, http: httpx.Client) -> str:
    name = settings.CSRF_COOKIE_NAME
    if name not in client.cookies:
        _keep(client, http.get("/sign-in/", headers=_cookies(client)))
        http.cookies.clear()
    return str(client.cookies[name].value)


def _cookies(client: Client) -> dict[str, str]:
    line = "; ".join(f"{each.key}={each.value}" for each in client.cookies.values() if each.value)
    return {"Cookie": line} if line else {}


def _keep(client: Client, got: httpx.Response) -> None:
    for line in got.headers.get_list("Set-Cookie"):
        client.cookies.update(SimpleCookie(line))


def _answer(client: Client, told: dict[str, Any], got: httpx.Response) -> Any:
    """The answer as Django's client returns it, checked against description and header table."""
    _keep(client, got)
    method, path = told["REQUEST_METHOD"], told["PATH_INFO"]
    conformance.check(method, path, got.status_code, got.headers, got.content)
    headers.check(method, path, got.status_code, got.headers.multi_items(), got.content)
    made: Any = HttpResponse(got.content, status=got.status_code)
    for name, value in got.headers.items():
        if name not in {"set-cookie", "content-length"}:
            made[name] = value
    made.request, made.client, made.json = told, client, got.json
    return made
