"""The normal form of an absolute http(s) URL, and whether it lies within an audience."""

import re
from functools import lru_cache
from ipaddress import AddressValueError, IPv6Address
from typing import Final

from .errors import InvalidRequestError

MAX_URL_LENGTH: Final = 2_048
# Entries, each of about 5 kB at most. One call compares the same few URLs several times. Errors are
# not cached.
_CACHE_SIZE: Final = 2_048
_DEFAULT_PORTS: Final = {"http": "80", "https": "443"}
# One pattern over printable ASCII. A host is a name, an IPv4 address or a bracketed IPv6 address:
# no userinfo (two readers could see two hosts in "https://api.example@evil.example"), no escapes,
# no zone. Query and fragment are matched so that their characters are checked, then dropped.
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
    """Normalise an absolute http(s) URL for comparison, without query and fragment
    (docs/protocol.md section 2).

    Scheme and host in lower case, default port dropped, empty path is `/`, hex digits of
    percent-encodings in capitals; nothing is decoded, so `%2F` and `/` stay different.

    Raises InvalidRequestError for anything but an absolute http(s) URL with a valid host and port,
    and for userinfo, a backslash or a dot segment (plain or percent-encoded), a broken
    percent-encoding, anything but printable ASCII, and more than 2,048 characters. Dot segments are
    refused and not resolved: the service provider's framework might resolve them differently, and
    the signature would cover a different resource from the one served.
    """
    origin, path = split_url(url)
    return origin + path


@lru_cache(maxsize=_CACHE_SIZE)
def split_url(url: str) -> tuple[str, str]:
    """The origin and path of `normalize_url(url)`. Raises InvalidRequestError for the same URLs."""
    if len(url) > MAX_URL_LENGTH:
        raise InvalidRequestError("The URL is longer than 2,048 characters.")
    match = _URL.fullmatch(url)
    if match is None:
        raise InvalidRequestError(
            "The URL must be absolute, http or https, in printable ASCII, with a valid host and "
            "port, and without userinfo or backslash."
        )
    scheme, host, port, path = match.groups()
    scheme, host = scheme.lower(), host.lower()
    if host.startswith("["):
        _check_ipv6(host[1:-1])
    if port is not None and int(port) > _MAX_PORT:
        raise InvalidRequestError("The URL's port is out of range.")
    suffix = "" if port is None or port == _DEFAULT_PORTS[scheme] else f":{port}"
    return f"{scheme}://{host}{suffix}", _normal_path(path or "/")


def url_within(url: str, audience: str) -> bool:
    """Does `url` have the audience's origin and lie at or below its path, on a segment boundary
    (docs/protocol.md section 8, step 4)?

    `https://sp.example/v1` contains `/v1` and `/v1/x`, not `/v10`. Raises InvalidRequestError if
    `normalize_url` refuses either: with dot segments a common prefix would prove nothing.
    """
    origin, path = split_url(url)
    audience_origin, audience_path = split_url(audience)
    base = audience_path.removesuffix("/")
    return origin == audience_origin and (path == audience_path or path.startswith(base + "/"))


def _normal_path(path: str) -> str:
    if "%" in path:
        path = _ESCAPE.sub(_upper_escape, path)
    # Many servers (Django too) decode "%2E" and "%2F" before they route, so look for dot segments
    # in the decoded form.
    seen = path.replace("%2E", ".").replace("%2F", "/") if "%" in path else path
    if "/." in seen and not {".", ".."}.isdisjoint(seen.split("/")):
        raise InvalidRequestError("The URL's path has a dot segment.")
    return path


def _upper_escape(match: re.Match[str]) -> str:
    escape = match[0].upper()
    if match[1] is None:
        raise InvalidRequestError("Each `%` in the URL's path must be followed by two hex digits.")
    if escape == "%5C":
        raise InvalidRequestError("The URL's path must not contain an encoded backslash (%5C).")
    return escape


def _check_ipv6(text: str) -> None:
    try:
        IPv6Address(text)
    except AddressValueError:
        raise InvalidRequestError("The URL's host is not an IPv6 address.") from None
