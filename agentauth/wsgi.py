"""The WSGI entry: Django's, with one reading of text. Server processes start here."""

import os
from typing import Any

import django
from django.core.handlers.wsgi import WSGIHandler, WSGIRequest
from django.http import HttpResponse
from django.http.response import HttpResponseBase
from django.urls import get_resolver

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "agentauth.settings")
django.setup(set_prefix=False)

from agentauth.checks import stop_if_unsafe  # noqa: E402 — it reads models


class Utf8Request(WSGIRequest):
    """A request whose text is UTF-8, whatever charset its Content-Type names.

    Django decodes query and form by that charset, and Python knows codecs that are none for text (`hex`) or that
    raise (`undefined`): one such header would fail before any middleware runs.
    """

    @property
    def encoding(self) -> None:
        return None

    @encoding.setter
    def encoding(self, _claimed: str | None) -> None:
        pass


class Application(WSGIHandler):
    request_class = Utf8Request

    def __call__(self, environ: dict[str, Any], start_response: Any) -> HttpResponseBase:
        response = super().__call__(environ, start_response)
        # The server would leave it out itself, and log a warning for each HEAD that a stranger sends.
        if environ["REQUEST_METHOD"] == "HEAD" and isinstance(response, HttpResponse):
            response.content = b""
        return response


application = Application()
# Every view, before the process says that it is there: else the first call of each process waits for them, for a second or more.
get_resolver().url_patterns  # noqa: B018 — asking loads them
stop_if_unsafe()
