"""A service provider's answer as a model may see it: cut, and without access tokens and proofs."""

import re
from collections.abc import Callable, Mapping
from typing import Final

import httpx

from agentauth.protocol.encoding import b64u_decode, read_json, read_object
from agentauth.protocol.errors import AgentAuthError, EncodingError

# Bytes of a service provider's answer that are read; a longer one is refused.
MAX_ANSWER_BYTES: Final = 1_048_576
# Characters of one text of a service provider's answer that are shown.
MAX_SHOWN: Final = 65_536
# A row of segments, each read once: the time grows with the length alone.
_JWS: Final = re.compile(r"(?<![A-Za-z0-9_-])[A-Za-z0-9_-]{8,}+(?:\.[A-Za-z0-9_-]{8,}+){2,}+")
_SECRET_TYPES: Final = frozenset({"at+jwt", "dpop+jwt"})
_MAX_HEADER: Final = 8_192
# An ASCII character as JSON may write it.
_ESCAPE: Final = re.compile(r"\\u00([2-7][0-9A-Fa-f])")


def without_secrets(text: str) -> str:
    """`text` without access tokens and proofs: a service provider may echo a request's headers."""
    # Also in what is no strict JSON, a reader may undo the escapes.
    plain = _ESCAPE.sub(lambda found: chr(int(found[1], 16)), text)
    filtered = _JWS.sub(lambda found: "[removed]" if _is_secret(found[0]) else found[0], plain)
    return text if filtered == plain else filtered


def _is_secret(row: str) -> bool:
    return any(_is_header(each) for each in row.split("."))


def _is_header(header: str) -> bool:
    if len(header) > _MAX_HEADER:
        return False
    try:
        return read_object(b64u_decode(header)).get("typ") in _SECRET_TYPES
    except AgentAuthError:
        return False


def in_each_text(value: object, change: Callable[[str], str]) -> object:
    """The JSON `value` with each text in it changed, names of members too."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(name): in_each_text(each, change) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [in_each_text(each, change) for each in value]
    return value


def shown_content(response: httpx.Response) -> tuple[object, bool]:
    """The answer's JSON or text as the client sees it, and whether it was cut."""
    if not response.content:
        return None, False
    # Not `response.text`: there the service chooses the decoder, among them some that fail and some
    # that make lone surrogates.
    text = response.content.decode(errors="replace")
    if len(text) > MAX_SHOWN:
        return without_secrets(text)[:MAX_SHOWN], True
    try:
        # Strict: what is deep, or not JSON for every reader, is shown as text.
        read = read_json(text, max_bytes=4 * MAX_SHOWN)
    except EncodingError:
        return without_secrets(text), False
    # After the escapes in it are read.
    return in_each_text(read, without_secrets), False
