"""What REDIS_URL may contain."""

import pytest
from django.core.exceptions import ImproperlyConfigured

from verifier.stores.redis_url import Address, parse_redis_url


@pytest.mark.parametrize(
    ("url", "addresses"),
    [
        ("redis://localhost", (Address("localhost", 6379),)),
        ("rediss://u:p%40@h.example:1/2", (Address("h.example", 1),)),
        ("redis+sentinel://:p@a,b:1/main/2", (Address("a", 26379), Address("b", 1))),
        ("redis://:p@a:1,b,[::1]:3", (Address("a", 1), Address("b", 6379), Address("::1", 3))),
    ],
)
def test_a_url_names_servers(url: str, addresses: tuple[Address, ...]) -> None:
    assert parse_redis_url(url).addresses == addresses


def test_a_url_carries_who_we_are() -> None:
    place = parse_redis_url("rediss://u:p%40@h:1/2")
    assert (place.tls, place.user, place.password, place.database, place.cluster) == (
        True,
        "u",
        "p@",
        2,
        False,
    )


def test_a_url_of_sentinels_names_the_primary() -> None:
    place = parse_redis_url("rediss+sentinel://:p@a/main-1")
    assert (place.primary, place.tls, place.cluster, place.is_moving, place.database) == (
        "main-1",
        True,
        False,
        True,
        0,
    )


@pytest.mark.parametrize(
    "url",
    [
        "", "http://:secret@a", "redis://", "redis://:secret@", "redis://:secret@a:0",
        "redis://:secret@a:65536", "redis://:secret@a:x", "redis://:secret@a,,b",
        "redis://:secret@a,a", "redis://:secret@a,b/1", "redis://:secret@a/x",
        "redis://:secret@a?db=1", "redis://:secret@a b", "unix:///run/redis",
        "redis+sentinel://:secret@a", "redis+sentinel://:secret@a/1", "redis://:secret@a/main",
    ],
)  # fmt: skip
def test_a_url_that_is_none_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ImproperlyConfigured) as refused:
        parse_redis_url(url)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://user@a", "no password"),
        ("redis://user:@a", "no password"),
        ("redis://@a", "no password"),
        ("redis+sentinel://user@a/main", "no password"),
        ("redis://user:pass@word@a", "Percent-encode"),
        ("redis://a,b,a:6379", "names a server twice"),
        ("redis://a:0", "from 1 to 65535"),
        ("redis://a:65536", "from 1 to 65535"),
        ("redis://a,b/1", "one database"),
    ],
)
def test_refused_url_is_told_what_is_wrong(url: str, said: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=said):
        parse_redis_url(url)
