"""Which addresses a client connects to, and which URLs lie within an audience. No I/O."""

import re
from typing import Final
from urllib.parse import SplitResult, urlsplit

from agentauth.protocol.dpop import url_within
from agentauth.protocol.errors import AgentAuthError, InvalidRequestError

from .errors import AddressError, AudienceError

# Only these two: a resolver may send `host.localhost` anywhere.
LOOPBACK: Final = frozenset({"localhost", "127.0.0.1"})
_IDENTIFIER: Final = re.compile(r"[A-Za-z0-9_-]{1,80}")


def is_loopback(url: str) -> bool:
    """Does `url` stay on this machine?"""
    return urlsplit(url).hostname in LOOPBACK


def check_registry_url(url: str) -> str:
    """The registry's origin without a final slash, which is its issuer. Raises AddressError."""
    parts = _split(url)
    if parts.path not in {"", "/"} or parts.query or parts.fragment or "?" in url or "#" in url:
        raise AddressError(
            "The registry's address must be an origin, such as https://registry.example.com."
        )
    return f"{parts.scheme}://{parts.netloc}"


def path_segment(identifier: str) -> str:
    """Check that an id or slug is one path segment: it may come from a file or a service provider,
    and a slash in it would change which URL is signed.

    Raises InvalidRequestError.
    """
    if _IDENTIFIER.fullmatch(identifier) is None:
        raise InvalidRequestError(
            "An id or slug may contain only letters, digits, hyphens and underscores."
        )
    return identifier


def check_audience(audience: str) -> str:
    """Check an audience from the registry.

    Raises AddressError: a faulty registry must not make us send tokens unencrypted.
    """
    parts = _split(audience)
    if parts.query or parts.fragment or audience.endswith("/"):
        raise AddressError("The service provider's audience is not a plain URL.")
    return audience


def within_audience(url: str, audience: str) -> str:
    """Make `url` absolute: a path is resolved against the audience's origin. The query is kept.

    Raises AudienceError unless it lies at or below the audience's path (protocol section 8), and
    for what is neither an absolute URL nor a path: readers differ on where `events` and `//host/x`
    lead.
    """
    absolute = url
    if "://" not in url.split("?", 1)[0]:
        if not url.startswith("/") or url.startswith("//"):
            raise AudienceError("Give an absolute URL, or a path that starts with one slash.")
        parts = urlsplit(audience)
        absolute = f"{parts.scheme}://{parts.netloc}{url}"
    try:
        inside = url_within(without_query(absolute), audience)
    except AgentAuthError as error:
        raise AudienceError(f"This URL cannot be signed for: {error.description}") from error
    if not inside:
        raise AudienceError(
            f"This URL does not lie within {audience}, the audience of this service provider."
        )
    return absolute


def without_query(url: str) -> str:
    """`url` without query and fragment, as in a proof."""
    return url.split("#", 1)[0].split("?", 1)[0]


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise AddressError("This is not an address.") from None
    if not parts.hostname or "@" in parts.netloc or "\\" in url or any(c.isspace() for c in url):
        raise AddressError("This is not an address such as https://registry.example.com.")
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOOPBACK):
        raise AddressError("Use https. Plain http is for localhost and 127.0.0.1 only.")
    return parts
