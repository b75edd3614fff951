"""The DRF parser of JSON bodies: the protocol's strict reader is the only one."""

from collections.abc import Mapping
from typing import IO, Any

from rest_framework.parsers import BaseParser

from agentauth.protocol.encoding import read_json
from agentauth.protocol.errors import InvalidRequestError

MAX_BODY_BYTES = 64 * 1024


class StrictJSONParser(BaseParser):
    """UTF-8 JSON objects, no duplicate members, no NaN, no deep nesting; at most 64 kB, or what the view names."""

    media_type = "application/json"

    def parse(
        self, stream: IO[Any], media_type: str | None = None, parser_context: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        _ = media_type
        view = (parser_context or {}).get("view")
        body = read_json(stream.read(), max_bytes=getattr(view, "max_body_bytes", MAX_BODY_BYTES))
        if not isinstance(body, dict):
            raise InvalidRequestError("The body must be a JSON object.")
        return body
