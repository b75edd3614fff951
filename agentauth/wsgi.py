"""The WSGI entry: Django's, with all text read as UTF-8. Server processes start here."""

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

    Django decodes query and form by that charset. Python has codecs that are not for text (`hex`)
    or that raise (`undefined`): one such header would fail before any middleware runs.
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
        # gunicorn would omit the body itself, but log a warning for each HEAD.
        if environ["REQUEST_METHOD"] == "HEAD" and isinstance(response, HttpResponse):
            response.content = b""
        return response


application = Application()
# Load every view before the process reports that it is up: else its first call waits a second or
# more.
get_resolver().url_patterns  # noqa: B018 — the access loads them
stop_if_unsafe()
