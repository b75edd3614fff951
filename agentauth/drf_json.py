"""How DRF reads JSON bodies, only by the protocol's strict reader, and how it reads Accept."""

import re
from collections.abc import Iterable, Mapping
from typing import IO, Any

from django.utils.http import parse_header_parameters
from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.parsers import BaseParser
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request

from agentauth.protocol.encoding import read_json
from agentauth.protocol.errors import InvalidRequestError

MAX_BODY_BYTES = 64 * 1024
CHARSET = "utf-8"
# Ranges that include JSON, the most specific first; and `q=0`, which excludes a range (RFC 9110
# sections 12.4.2 and 12.5.1).
_RANGES = ("application/json", "application/*", "*/*")
_NEVER = re.compile(r";\s*q\s*=\s*0(\.0*)?\s*(;|$)", re.IGNORECASE)


class Negotiation(DefaultContentNegotiation):
    """DRF's, with a fast path for what nearly every client sends.

    Stricter than DRF in two ways (docs/protocol.md section 0): a body in a charset other than UTF-8
    has no parser (415), and what `Accept` names with `q=0` is not served (406 if nothing else is
    left).
    """

    def select_parser(self, request: Request, parsers: Iterable[BaseParser]) -> BaseParser | None:
        first = next(iter(parsers))
        if request.content_type == first.media_type:
            return first
        _, parameters = parse_header_parameters(request.content_type)
        if parameters.get("charset", CHARSET).lower() != CHARSET:
            return None
        return super().select_parser(request, parsers)

    def get_accept_list(self, request: Request) -> list[str]:
        given = super().get_accept_list(request)
        for media_range in _RANGES:
            named = [
                each for each in given if each.partition(";")[0].strip().lower() == media_range
            ]
            if named:
                # The most specific range decides; a wider one does not override it.
                refused = any(_NEVER.search(each) for each in named)
                return [] if refused else [each for each in given if not _NEVER.search(each)]
        return given

    def select_renderer(
        self, request: Request, renderers: Iterable[BaseRenderer], format_suffix: str | None = None
    ) -> tuple[BaseRenderer, str]:
        first = next(iter(renderers))
        if request.META.get("HTTP_ACCEPT", "*/*") in {"*/*", first.media_type}:
            return first, str(first.media_type)
        renderer, media_type = super().select_renderer(request, renderers, format_suffix)
        return renderer, str(media_type)


class StrictJSONParser(BaseParser):
    """Reads UTF-8 JSON objects: no duplicate members, NaN or deep nesting; 64 kB by default."""

    media_type = "application/json"

    def parse(
        self,
        stream: IO[Any],
        media_type: str | None = None,
        parser_context: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        _ = media_type
        view = (parser_context or {}).get("view")
        body = read_json(stream.read(), max_bytes=getattr(view, "max_body_bytes", MAX_BODY_BYTES))
        if not isinstance(body, dict):
            raise InvalidRequestError("The body must be a JSON object.")
        return body
