"""URLs as DPoP compares them: one normal form of an absolute http(s) URL, and whether it lies inside an audience."""

import re
from functools import lru_cache
from ipaddress import AddressValueError, IPv6Address
from typing import Final

from .errors import InvalidRequestError

MAX_URL_LENGTH: Final = 2_048
# One call compares the same few texts several times, and many calls name the same resources. Errors are not kept.
_KEPT: Final = 2_048
_DEFAULT_PORTS: Final = {"http": "80", "https": "443"}
# One pattern over printable ASCII. A host is a name, an IPv4 address or a bracketed IPv6 address: no userinfo
# ("https://api.example@evil.example" would read as two different hosts to two readers), no escapes, no zone.
# Query and fragment are matched, so that their characters are checked too, and then dropped.
_URL: Final = re.compile(
    r"(https?)://"
    r"([a-z0-9_](?:[a-z0-9._-]*[a-z0-9_.])?|\[[0-9a-f:.]+\])"
    r"(?::([1-9][0-9]{0,4}))?"
    r"(/[!-\[\]-~]*?)?"
    r"(?:\?[!-\[\]-~]*?)?"
    r"(?:\#[!-\[\]-~]*)?",
    re.ASCII | re.IGNORECASE,
)
_ESCAPE: Final = re.compile(r"%([0-9A-Fa-f]{2})?")
_MAX_PORT: Final = 65_535


def normalize_url(url: str) -> str:
    """The form in which two URLs are compared (section 8): absolute http(s), without query and fragment.

    Scheme and host in lower case, default port dropped, an empty path is `/`, the hex digits of percent-encodings
    in capitals; nothing is decoded, so `%2F` and `/` stay different. Raises InvalidRequestError for userinfo, a
    backslash or a dot segment (plain or percent-encoded), a broken percent-encoding, anything but printable
    ASCII, and texts over 2,048 characters. Refused rather than resolved: the service provider's framework and we
    might resolve differently, and the signature would then cover another resource than the one that is served.
    """
    origin, path = split_url(url)
    return origin + path


@lru_cache(maxsize=_KEPT)
def split_url(url: str) -> tuple[str, str]:
    """The normal form of `url` in two parts, origin and path. Raises InvalidRequestError as `normalize_url` does."""
    match = _URL.fullmatch(url) if len(url) <= MAX_URL_LENGTH else None
    if match is None:
        raise InvalidRequestError("The URL is not an absolute http or https URL in plain form.")
    scheme, host, port, path = match.groups()
    scheme, host = scheme.lower(), host.lower()
    if host.startswith("["):
        _check_ipv6(host[1:-1])
    if port is not None and int(port) > _MAX_PORT:
        raise InvalidRequestError("The URL's port is out of range.")
    suffix = "" if port is None or port == _DEFAULT_PORTS[scheme] else f":{port}"
    return f"{scheme}://{host}{suffix}", _normal_path(path or "/")


def url_within(url: str, audience: str) -> bool:
    """Whether `url` has the audience's origin and lies at or below its path, on a segment boundary.

    `https://sp.example/v1` holds `/v1` and `/v1/x`, not `/v10`. Raises InvalidRequestError when either is not a
    URL that `normalize_url` takes: without the refusal of dot segments a prefix would prove nothing.
    """
    origin, path = split_url(url)
    audience_origin, audience_path = split_url(audience)
    base = audience_path.rstrip("/")
    return origin == audience_origin and (path == audience_path or path.startswith(base + "/"))


def _normal_path(path: str) -> str:
    if "%" in path:
        path = _ESCAPE.sub(_upper_escape, path)
    # "%2E" is a dot and "%2F" a slash to many servers, and they decode before they route (Django does): dot
    # segments are looked for in the form such a server would see.
    seen = path.replace("%2E", ".").replace("%2F", "/") if "%" in path else path
    if "/." in seen and not {".", ".."}.isdisjoint(seen.split("/")):
        raise InvalidRequestError("The URL's path has a dot segment.")
    return path


def _upper_escape(match: re.Match[str]) -> str:
    escape = match[0].upper()
    if match[1] is None or escape == "%5C":
        raise InvalidRequestError("The URL has a broken percent-encoding, or an encoded backslash.")
    return escape


def _check_ipv6(text: str) -> None:
    try:
        IPv6Address(text)
    except AddressValueError:
        raise InvalidRequestError("The URL's host is not an IPv6 address.") from None
