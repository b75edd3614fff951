"""Which Accept headers the lean endpoint answers itself: those that allow JSON as it writes it."""

import pytest

from verifier.json_accept_check import MAX_BYTES, takes_json

AXIOS = b"application/json, text/plain, */*"
FIREFOX = b"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
CHROME = (
    b"text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8,"
    b"application/signed-exchange;v=b3;q=0.7"
)
JAVA = b"text/html, image/gif, image/jpeg, */*; q=0.2"


@pytest.mark.parametrize(
    "header",
    [
        None,
        b"*/*",
        b"application/json",
        b"application/*",
        AXIOS,
        FIREFOX,
        CHROME,
        JAVA,
        b"APPLICATION/JSON",
        b"application/json; charset=utf-8",
        b"application/json;charset=UTF-8, */*;q=0.1",
        b"application/json;q=0.001",
        b"application/json ; q=1.000",
        b"text/html;q=0, application/json",
        b"*/*;q=0, application/json",
        b",, application/json,",
        b"text/html;level=1, */*",
    ],
)
def test_SA_12_what_common_clients_send_takes_our_json(header: bytes | None) -> None:
    assert takes_json(header)


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"text/html",
        b"text/*",
        b"application/xml",
        b"application/jsonp",
        b"*/json",
        b"application/json;q=0",
        b"application/json;q=0.000, */*",
        b"application/*;q=0, */*;q=1",
        b"application/json, application/json;q=0",
        b"application/json;q=2",
        b"application/json;q=0.0001",
        b"application/json;q=",
        b"application/json;q=-1",
        # Another charset would need other bytes than ours.
        b"application/json; indent=4",
        b"*/*;indent=4, application/json",
        b"application/json;version=2",
        b"application/json; charset=utf-16",
        b'text/html;a=", application/json, "',
        b"application/json" + b" " * MAX_BYTES,
        b"application/json\xff",
    ],
)
def test_SA_12_what_does_not_take_it_is_left_to_the_view(header: bytes) -> None:
    assert not takes_json(header)


def test_SA_10_a_list_that_takes_long_to_read_is_not_read() -> None:
    from verifier.json_accept_check import _takes_json

    read = _takes_json.cache_info().misses
    for separator in (b",", b";"):
        assert not takes_json(b"application/json" + 32 * (separator + b"a"))
    assert _takes_json.cache_info().misses == read
    assert takes_json(b"application/json" + 31 * b",a")


def test_a_header_is_read_once_and_few_are_kept() -> None:
    from verifier.json_accept_check import _takes_json

    _takes_json.cache_clear()
    for number in range(1000):
        assert takes_json(b"application/json, text/x-%d" % number)
        assert takes_json(AXIOS)
    kept = _takes_json.cache_info()
    assert (kept.currsize, kept.misses) == (256, 1001)
