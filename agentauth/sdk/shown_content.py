"""A service provider's answer as a model may see it: cut, and without access tokens and proofs."""

import re
from typing import Final

import httpx

from agentauth.protocol.encoding import b64u_decode, read_json, read_object
from agentauth.protocol.errors import AgentAuthError, EncodingError

# Characters of one text of a service provider's answer that are shown.
MAX_SHOWN: Final = 65_536
_JWS: Final = re.compile(r"[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}")
_SECRET_TYPES: Final = frozenset({"at+jwt", "dpop+jwt"})
_MAX_HEADER: Final = 8_192


def without_secrets(text: str) -> str:
    """`text` without access tokens and proofs: a service provider may echo a request's headers."""
    return _JWS.sub(lambda found: "[removed]" if _is_secret(found[0]) else found[0], text)


def _is_secret(compact: str) -> bool:
    header = compact.split(".", 1)[0]
    if len(header) > _MAX_HEADER:
        return False
    try:
        return read_object(b64u_decode(header)).get("typ") in _SECRET_TYPES
    except AgentAuthError:
        return False


def shown_content(response: httpx.Response) -> tuple[object, bool]:
    """The answer's JSON or text without secrets, and whether it was cut."""
    if not response.content:
        return None, False
    text = without_secrets(response.text)
    if len(text) > MAX_SHOWN:
        return text[:MAX_SHOWN], True
    try:
        # Strict: what is deep, or not JSON for every reader, is shown as text.
        return read_json(text.encode(), max_bytes=4 * MAX_SHOWN), False
    except (EncodingError, UnicodeEncodeError):
        return text, False
