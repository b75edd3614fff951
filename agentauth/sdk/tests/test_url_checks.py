import pytest

from agentauth.sdk.errors import AddressError, AudienceError
from agentauth.sdk.url_checks import (
    check_audience,
    check_registry_url,
    is_loopback,
    within_audience,
)


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://registry.example.com", "https://registry.example.com"),
        ("https://registry.example.com/", "https://registry.example.com"),
        ("https://registry.example.com:8443", "https://registry.example.com:8443"),
        ("http://localhost:8000", "http://localhost:8000"),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000"),
    ],
)
def test_a_registry_is_an_origin(url: str, origin: str) -> None:
    assert check_registry_url(url) == origin


@pytest.mark.parametrize(
    "url",
    [
        "http://registry.example.com",
        "http://localhost.example.com",
        "http://127.0.0.1.example.com",
        "http://127.0.0.2",
        "http://[::1]:8000",
        "http://registry.localhost",
        "ftp://localhost",
        "registry.example.com",
        "https://",
        "https://user:secret@registry.example.com",
        "https://registry.example.com/path",
        "https://registry.example.com?x=1",
        "https://registry.example.com#x",
        "https://registry.example.com:99999",
        "https://registry.example.com\\@evil.example",
        "https://registry .example.com",
    ],
)
def test_registry_url_must_be_https_or_localhost_and_well_formed(url: str) -> None:
    with pytest.raises(AddressError):
        check_registry_url(url)


@pytest.mark.parametrize(
    "audience", ["http://api.sp.example", "https://api.sp.example/", "https://u@api.sp.example"]
)
def test_no_proof_is_made_for_a_clear_text_or_odd_audience(audience: str) -> None:
    with pytest.raises(AddressError):
        check_audience(audience)


@pytest.mark.parametrize(
    ("url", "audience", "absolute"),
    [
        ("/v1/events", "https://api.sp.example/v1", "https://api.sp.example/v1/events"),
        ("/v1", "https://api.sp.example/v1", "https://api.sp.example/v1"),
        (
            "/v1/events?q=http://x",
            "https://api.sp.example/v1",
            "https://api.sp.example/v1/events?q=http://x",
        ),
        ("/api/events", "https://api.sp.example", "https://api.sp.example/api/events"),
        ("https://api.sp.example/v1/x", "https://api.sp.example/v1", "https://api.sp.example/v1/x"),
    ],
)
def test_a_path_is_resolved_against_the_audience_s_origin(
    url: str, audience: str, absolute: str
) -> None:
    assert within_audience(url, audience) == absolute


@pytest.mark.parametrize(
    "url",
    [
        "/v10",
        "/events",
        "/v1/../admin",
        "/v1/%2e%2e/admin",
        "/v1/..%2fadmin",
        "//evil.example/v1/x",
        "events",
        "",
        "https://evil.example/v1/x",
        "https://api.sp.example@evil.example/v1/x",
        "https://api.sp.example:444/v1/x",
        "http://api.sp.example/v1/x",
        "https://api.sp.example/v1\\x",
        "javascript:alert(1)",
    ],
)
def test_nothing_outside_the_audience_is_signed_for(url: str) -> None:
    with pytest.raises(AudienceError):
        within_audience(url, "https://api.sp.example/v1")


@pytest.mark.parametrize("url", ["//evil.example/x", "//", "events", "?x=1"])
def test_ambiguous_url_is_refused_even_if_the_audience_is_the_origin(
    url: str,
) -> None:
    with pytest.raises(AudienceError):
        within_audience(url, "https://api.sp.example")


def test_only_this_machine_is_asked_past_a_proxy() -> None:
    assert is_loopback("http://localhost:8000/v1")
    assert is_loopback("http://127.0.0.1")
    assert not is_loopback("https://registry.example.com")
    assert not is_loopback("http://registry.localhost")
