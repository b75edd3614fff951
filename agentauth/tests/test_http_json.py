"""The JSON parser alone: how much it reads is what its view names, and 64 kB for every other."""

import io
from types import SimpleNamespace

import pytest

from agentauth.http_json import MAX_BODY_BYTES, StrictJSONParser
from agentauth.protocol.errors import EncodingError


def body(size: int) -> io.BytesIO:
    return io.BytesIO(b'{"name": "' + b"x" * (size - 12) + b'"}')


def test_a_body_is_64_kb_at_most_unless_its_view_takes_more() -> None:
    parser = StrictJSONParser()
    assert parser.parse(body(MAX_BODY_BYTES))
    with pytest.raises(EncodingError):
        parser.parse(body(MAX_BODY_BYTES + 1))
    batch = {"view": SimpleNamespace(max_body_bytes=100_000)}
    assert parser.parse(body(100_000), parser_context=batch)
    with pytest.raises(EncodingError):
        parser.parse(body(100_001), parser_context=batch)
