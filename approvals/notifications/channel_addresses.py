"""Where messages may go: https to a public host. In development also http to this host.

An address that a person types, or that their browser names, must not reach into the operator's
network (SSRF). The URL's form is checked when it is added and again at each delivery; what its name
resolves to, at each delivery, by the connection that uses the answer
(audit/bounded_http_post.py).
"""

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

from django.conf import settings

from agentauth.protocol.errors import InvalidRequestError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# The longest address of a push service (Windows).
MAX_CHARACTERS: Final = 1024
# Strict, so that no two parsers can read another host in it: no user, no backslash, no fragment.
_URL: Final = re.compile(
    r"(https?)://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?"
    r"(?:[/?][A-Za-z0-9/?._~!$&'()*+,;=:@%-]*)?"
)
# A last label of digits makes a host an IPv4 address for some programs: 2130706433, 127.1, 0x7f.1.
_NUMERIC: Final = re.compile(r"(?:.*\.)?(?:[0-9]+|0[xX][0-9A-Fa-f]*)\.?")
_MAX_PORT: Final = 65_535
_PUBLIC_IPV6: Final = ipaddress.ip_network("2000::/3")
# The former relays of 6to4, which lead to IPv6.
_RELAYS: Final = ipaddress.ip_network("192.88.99.0/24")


@dataclass(frozen=True, slots=True)
class Target:
    url: str
    host: str


def parse_target(url: str) -> Target:
    """The URL. Raises InvalidRequestError that says what is wrong with it."""
    found = _URL.fullmatch(url)
    if found is None or len(url) > MAX_CHARACTERS or int(found[3] or 443) > _MAX_PORT:
        raise InvalidRequestError(
            "The address for messages must be a URL like https://hooks.example.com/path, with at "
            f"most {MAX_CHARACTERS} characters and without a user name or a fragment. "
            "Write an internationalized domain name in its ASCII form (xn--…)."
        )
    scheme, host = found[1], found[2].strip("[]").lower()
    if scheme == "http" and not (settings.DEVELOPMENT and _is_this_host(host)):
        raise InvalidRequestError("The address for messages must begin with https://.")
    if not _may_be_public(host) and not (settings.DEVELOPMENT and _is_this_host(host)):
        raise InvalidRequestError(
            "The address for messages must name a host on the public internet."
        )
    return Target(url, host)


def may_connect(address: Address) -> bool:
    """Whether a message may be sent to this address, to which its name resolved."""
    return is_public(address) or (settings.DEVELOPMENT and address.is_loopback)


def is_public(address: Address) -> bool:
    """Whether it is an ordinary address of the internet.

    Not one of this host or network, of a link, for many hosts or for documentation, nor an IPv6
    address that carries an IPv4 address.
    """
    if isinstance(address, ipaddress.IPv6Address):
        return (
            address in _PUBLIC_IPV6
            and address.is_global
            and address.sixtofour is None
            and address.teredo is None
        )
    return (
        address.is_global
        and not address.is_multicast
        and not address.is_reserved
        and address not in _RELAYS
    )


def _is_this_host(host: str) -> bool:
    return host in {"localhost", "127.0.0.1", "::1"}


def _may_be_public(host: str) -> bool:
    try:
        return is_public(ipaddress.ip_address(host))
    except ValueError:
        # A name without a dot is one of the local network.
        name = host.removesuffix(".")
        return not _NUMERIC.fullmatch(host) and "." in name and not name.endswith(".localhost")
