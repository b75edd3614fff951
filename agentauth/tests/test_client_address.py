"""A client's address behind proxies: what our own proxies added, never what a client wrote."""

import pytest
from django.http import HttpRequest, HttpResponse
from django.test import RequestFactory
from pytest_django import Settings

from agentauth.client_address import UNKNOWN, ForwardedMiddleware, client_address

PEER = "10.0.0.2"


@pytest.mark.parametrize(
    ("hops", "forwarded", "expected"),
    [
        (0, "", PEER),
        (0, "203.0.113.7", PEER),
        (1, "203.0.113.7", "203.0.113.7"),
        (1, "1.1.1.1, 203.0.113.7", "203.0.113.7"),
        (1, "203.0.113.7,1.1.1.1", "1.1.1.1"),
        (2, "1.1.1.1, 203.0.113.7, 10.0.0.9", "203.0.113.7"),
        (2, "203.0.113.7", PEER),  # past one of the two
        (1, "", PEER),
        (1, "nonsense", PEER),
        (1, "203.0.113.7, ", PEER),
        (1, "203.0.113.7:8080", PEER),
        (1, "::ffff:203.0.113.7", "203.0.113.7"),
        (1, "2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        (1, "2001:db8:1:2::", "2001:db8:1:2::/64"),
    ],
)
def test_DJ_25_only_what_our_own_proxies_add_is_believed(
    hops: int, forwarded: str, expected: str
) -> None:
    meta = {"REMOTE_ADDR": PEER, "HTTP_X_FORWARDED_FOR": forwarded, "HTTP_X_REAL_IP": "9.9.9.9"}
    assert client_address(meta, hops=hops) == expected


def test_a_peer_without_an_address_is_one_unknown() -> None:
    assert client_address({"REMOTE_ADDR": ""}, hops=0) == UNKNOWN


@pytest.mark.parametrize(
    ("hops", "said", "secure"),
    [
        (0, "https", False),
        (1, "https", True),
        (1, "http", False),
        (1, "https, http", False),  # the left one is the client's
        (1, "http, https", True),
        (2, "https, http", True),
        (2, "https", True),
        (1, "", False),
    ],
)
def test_DJ_3_the_scheme_is_believed_from_our_own_proxies_alone(
    settings: Settings, hops: int, said: str, secure: bool
) -> None:
    settings.TRUSTED_PROXIES = hops
    settings.SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if hops else None
    seen: list[HttpRequest] = []

    def view(request: HttpRequest) -> HttpResponse:
        seen.append(request)
        return HttpResponse()

    ForwardedMiddleware(view)(RequestFactory().get("/", headers={"X-Forwarded-Proto": said}))
    assert seen[0].is_secure() is secure
    assert hops or "HTTP_X_FORWARDED_PROTO" not in seen[0].META
