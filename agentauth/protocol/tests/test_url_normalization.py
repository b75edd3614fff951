"""URLs: one normal form, and audiences that contain only what lies below them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentauth.protocol.errors import InvalidRequestError
from agentauth.protocol.url_normalization import normalize_url, url_within

LONGEST = "https://api.example/".ljust(2_048, "a")


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("https://api.example", "https://api.example/"),
        ("HTTPS://API.Example/V1/x", "https://api.example/V1/x"),
        ("https://api.example:443/a", "https://api.example/a"),
        ("http://api.example:80/a", "http://api.example/a"),
        ("https://api.example:80/a", "https://api.example:80/a"),
        ("http://127.0.0.1:8001/a", "http://127.0.0.1:8001/a"),
        ("https://api.example/a?b=../c#/../d", "https://api.example/a"),
        ("https://api.example?b", "https://api.example/"),
        ("https://api.example#b", "https://api.example/"),
        ("https://api.example/?", "https://api.example/"),
        ("https://[2001:DB8::1]:8443/a", "https://[2001:db8::1]:8443/a"),
        ("https://[::1]:443/", "https://[::1]/"),
        ("https://[::ffff:192.0.2.1]/", "https://[::ffff:192.0.2.1]/"),
        ("https://api.example/%e2%82%ac/%2f", "https://api.example/%E2%82%AC/%2F"),
        ("https://api.example/%41", "https://api.example/%41"),
        ("https://api.example/a//b/", "https://api.example/a//b/"),
        ("https://api.example/.well-known/x", "https://api.example/.well-known/x"),
        ("https://api.example/a/...", "https://api.example/a/..."),
        ("https://api.example/a;b=1,@:!$&'()*+|{}", "https://api.example/a;b=1,@:!$&'()*+|{}"),
        ("https://xn--bcher-kva.example/", "https://xn--bcher-kva.example/"),
        ("http://localhost:8000/v1/agents", "http://localhost:8000/v1/agents"),
        ("https://a_b.example./", "https://a_b.example./"),
        ("https://api.example:65535/", "https://api.example:65535/"),
        (LONGEST, LONGEST),
    ],
)
def test_the_normal_form(url: str, normal: str) -> None:
    assert normalize_url(url) == normal
    assert normalize_url(normal) == normal


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/v1/events",
        "//api.example/a",
        "api.example/a",
        "ftp://api.example/a",
        "https:api.example",
        "https:/api.example",
        "https://",
        "https:///a",
        "https://user@api.example/",
        "https://user:pw@api.example/",
        "https://@api.example/",
        "https://api.example\\@evil.example/",
        "https://api.example/a\\b",
        "https://api.example/a%5cb",
        "https://api.example/a%5Cb",
        "https://api.example/./a",
        "https://api.example/a/..",
        "https://api.example/a/../b",
        "https://api.example/a/%2e%2E/b",
        "https://api.example/a/.%2e/b",
        "https://api.example/%2e",
        "https://api.example/a/..%2fb",
        "https://api.example/a%2F..%2Fb",
        "https://api.example/a%",
        "https://api.example/a%4",
        "https://api.example/a%zz",
        "https://api.example/a b",
        "https://api.example/a\n",
        "https://api.example/\u00e9",
        "https://b\u00fccher.example/",
        "https://api.example\u3002evil/",
        "\u212attps://api.example/",
        "http\u017f://api.example/",
        " https://api.example/",
        "https://api.example /",
        "https://api.example:/",
        "https://api.example:0/",
        "https://api.example:0443/",
        "https://api.example:65536/",
        "https://api.example:999999/",
        "https://api.example:+443/",
        "https://api.example:443:443/",
        "https://api%2eexample/",
        "https://[::1/",
        "https://::1/",
        "https://[::1%25eth0]/",
        "https://[::1%eth0]/",
        "https://[1]/",
        "https://[:::1]/",
        "https://[::g]/",
        "https://-api.example/",
        "https://.example/",
        LONGEST + "a",
        ":::*;",
    ],
)
def test_what_two_readers_could_read_in_two_ways_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequestError):
        normalize_url(url)
    with pytest.raises(InvalidRequestError):
        url_within(url, "https://api.example")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (LONGEST + "a", "longer than 2,048 characters"),
        ("https://user@api.example/", "without userinfo"),
        ("https://api.example/%4", "two hex digits"),
        ("https://api.example/a%5cb", "encoded backslash"),
    ],
)
def test_error_says_what_is_wrong_with_the_url(url: str, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        normalize_url(url)


@pytest.mark.parametrize(
    ("url", "audience", "inside"),
    [
        ("https://api.example/v1/x", "https://api.example/v1", True),
        ("https://api.example/v1", "https://api.example/v1", True),
        ("https://api.example/v1/", "https://api.example/v1", True),
        ("https://api.example/v1?x=1", "https://api.example/v1", True),
        ("https://api.example/v10", "https://api.example/v1", False),
        ("https://api.example/v1%2Fx", "https://api.example/v1", False),
        ("https://api.example/V1/x", "https://api.example/v1", False),
        ("https://api.example/%761/x", "https://api.example/v1", False),
        ("https://api.example//v1/x", "https://api.example/v1", False),
        ("https://api.example/v1;a/x", "https://api.example/v1", False),
        ("https://api.example/", "https://api.example/v1", False),
        ("https://api.example/anything", "https://api.example", True),
        ("https://api.example", "https://api.example", True),
        ("https://API.example:443/a", "https://api.example", True),
        ("http://api.example/a", "https://api.example", False),
        ("https://api.example:8443/a", "https://api.example", False),
        ("https://evil.example/a", "https://api.example", False),
        ("https://api.example.evil.example/a", "https://api.example", False),
        # Only one final slash of an audience means nothing.
        ("https://api.example/v1/x", "https://api.example/v1/", True),
        ("https://api.example/v1//x", "https://api.example/v1//", True),
        ("https://api.example/v1/x", "https://api.example/v1//", False),
        ("https://api.example/x", "https://api.example//", False),
    ],
)
def test_audience_covers_the_urls_below_it(url: str, audience: str, inside: bool) -> None:
    assert url_within(url, audience) is inside


@given(
    st.text("htps:/.%25eEfF[]@\\?#a0-", max_size=24).map("https://a".__add__) | st.text(max_size=30)
)
def test_reading_a_url_raises_nothing_else_and_settles_at_once(url: str) -> None:
    try:
        normal = normalize_url(url)
    except InvalidRequestError:
        return
    assert normalize_url(normal) == normal
    assert url_within(normal, normal)
