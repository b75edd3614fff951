"""Prepare a service provider's response for a model: remove access tokens and proofs, and truncate
it to MAX_SHOWN characters.
"""

import re
from collections.abc import Callable, Mapping
from typing import Final

import httpx

from agentauth.protocol.encoding import b64u_decode, read_json, read_object
from agentauth.protocol.errors import AgentAuthError, EncodingError

# The most bytes that the MCP proxy (`agentauth.mcp.server_tools`) reads of a response; it refuses a
# longer one. `agentauth.integrations.agent_tool` reads up to the client's own limit.
MAX_ANSWER_BYTES: Final = 1_048_576
# The most characters of a response body that are shown. A longer one is truncated, even if it is
# JSON.
MAX_SHOWN: Final = 65_536
# Three or more base64url segments joined by dots. Possessive quantifiers: without backtracking, the
# time is linear in the length.
_JWS: Final = re.compile(r"(?<![A-Za-z0-9_-])[A-Za-z0-9_-]{8,}+(?:\.[A-Za-z0-9_-]{8,}+){2,}+")
_SECRET_TYPES: Final = frozenset({"at+jwt", "dpop+jwt"})
# Characters. No token or proof is longer (docs/protocol.md section 1), so a longer segment is not
# the header of one.
_MAX_HEADER: Final = 8_192
# An ASCII character as JSON may write it.
_ESCAPE: Final = re.compile(r"\\u00([2-7][0-9A-Fa-f])")


def without_secrets(text: str) -> str:
    """Replace access tokens and proofs in `text` by `[removed]`.

    This is for providers that echo a request's headers. One that encodes or splits a token on
    purpose gets past it.
    """
    # Decode JSON escapes even if the text is not strict JSON: a model may decode them too.
    plain = _ESCAPE.sub(lambda found: chr(int(found[1], 16)), text)
    filtered = _JWS.sub(lambda found: "[removed]" if _is_secret(found[0]) else found[0], plain)
    # If nothing was removed, keep the escapes as sent.
    return text if filtered == plain else filtered


def _is_secret(jws: str) -> bool:
    return any(_is_header(each) for each in jws.split("."))


def _is_header(segment: str) -> bool:
    if len(segment) > _MAX_HEADER:
        return False
    try:
        return read_object(b64u_decode(segment)).get("typ") in _SECRET_TYPES
    except AgentAuthError:
        return False


def in_each_text(value: object, change: Callable[[str], str]) -> object:
    """The JSON `value` with `change` applied to every string in it, member names included.

    Of members whose names become equal, the last one is kept.
    """
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(name): in_each_text(each, change) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [in_each_text(each, change) for each in value]
    return value


def shown_content(response: httpx.Response) -> tuple[object, bool]:
    """The response's JSON or text without secrets, and whether it was truncated.

    The content is None for an empty body.
    """
    if not response.content:
        return None, False
    # `response.text` would use the charset that the service names. Some of those codecs raise, and
    # some produce lone surrogates.
    text = response.content.decode(errors="replace")
    if len(text) > MAX_SHOWN:
        # Filter before truncating: half a token would not be recognised.
        return without_secrets(text)[:MAX_SHOWN], True
    try:
        # Strict: JSON that is too deep, or that parsers read differently (for example with a
        # repeated member), is shown as text. A character has at most four bytes in UTF-8.
        read = read_json(text, max_bytes=4 * MAX_SHOWN)
    except EncodingError:
        return without_secrets(text), False
    # Filter the decoded strings, so that an escape cannot hide a token.
    return in_each_text(read, without_secrets), False
