"""Encoding: each value has one form; everything else is refused."""

import contextlib
import time
from datetime import UTC, datetime, timedelta, timezone

import pytest
import rfc8785
from hypothesis import example, given
from hypothesis import strategies as st

from agentauth.protocol.encoding import (
    MAX_INTEGER,
    b64u_decode,
    b64u_encode,
    canonical_json,
    parse_timestamp,
    read_json,
    read_object,
    timestamp,
)
from agentauth.protocol.errors import EncodingError

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-MAX_INTEGER, MAX_INTEGER)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text("abc_é"), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.binary(max_size=80))
def test_base64url_reads_back_what_it_wrote(data: bytes) -> None:
    assert b64u_decode(b64u_encode(data)) == data


@pytest.mark.parametrize(
    "text",
    ["A", "AB", "QQ==", "QQ=", "Q Q", "QQ\n", "-_+_", "ab/_", "Zm9=", "Zm9\u0661", "é", "AAAAA"],
)
def test_base64url_has_one_spelling(text: str) -> None:
    with pytest.raises(EncodingError):
        b64u_decode(text)


@given(st.text("AQgw-_+/= \n", max_size=9))
def test_a_text_that_decodes_is_the_encoding_of_its_bytes(text: str) -> None:
    try:
        data = b64u_decode(text)
    except EncodingError:
        return
    assert b64u_encode(data) == text


def test_canonical_json_orders_members_and_leaves_no_space() -> None:
    assert (
        canonical_json({"b": [1, True, None], "a": "é"}) == '{"a":"é","b":[1,true,null]}'.encode()
    )


@pytest.mark.parametrize(
    "value",
    [
        1.0,
        {"a": 0.5},
        {"a": [True, 0.5]},
        "\0",
        {"a": "\\u0000\0"},
        {"a": "\udfff"},
        MAX_INTEGER + 1,
        {"a": -MAX_INTEGER - 1},
        {1: "a"},
        b"x",
        "\ud800",
        {"\0": 1},
        {"a"},
    ],
)
def test_what_has_no_one_canonical_form_is_refused(value: object) -> None:
    with pytest.raises(EncodingError):
        canonical_json(value)


def test_canonical_json_of_a_bottomless_value_is_refused() -> None:
    value: list[object] = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(EncodingError):
        canonical_json(value)


@given(json_values)
def test_canonical_json_reads_back(value: object) -> None:
    assert read_json(canonical_json(value)) == value


# Members whose order differs between Unicode and UTF-16, and text that some writers escape
# and others do not.
_awkward = st.text(
    st.sampled_from('\x01\b\t\n\f\r"\\/\x1f\x7fu0é\u2028\ud7ff\ue000\uffff𐀀𝄞'), max_size=5
)
_awkward_values = st.recursive(
    st.sampled_from([None, True, False, 0, -1, MAX_INTEGER, -MAX_INTEGER, "\\u0000", (), (1, "a")])
    | _awkward,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_awkward, inner, max_size=4),
    max_leaves=12,
)


@given(json_values | _awkward_values)
@example({"\uffff": 1, "\U0001d11e": 2})
def test_canonical_json_writes_what_the_library_of_rfc_8785_writes(value: object) -> None:
    assert canonical_json(value) == rfc8785.dumps(value)  # type: ignore[arg-type]  # JSON, as the strategies say


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        '{"a":1,"a":2}',
        '{"b":{"a":1,"a":1}}',
        '{"a":1,"\\u0061":2}',
        "NaN",
        "[Infinity]",
        "-Infinity",
        "1e400",
        "\ufeff{}",
        '"\\ud800"',
        '{"\\udfff":1}',
        '"\\u0000"',
        '{"a\\u0000":1}',
        str(MAX_INTEGER + 1),
        "-9007199254740992",
        "9" * 5_000,
        "01",
        "{} {}",
        "{a:1}",
        "'a'",
        "[1,]",
        '"\x01"',
    ],
)
def test_json_that_readers_disagree_about_is_refused(text: str) -> None:
    for data in (text, text.encode("utf-8", "surrogatepass")):
        with pytest.raises(EncodingError):
            read_json(data)


@pytest.mark.parametrize(
    "data", [b"\xef\xbb\xbf{}", b'"\xff"', b'"\xed\xa0\x80"', b"\xff\xfe{\x00}\x00", '"\ud800"']
)
def test_only_utf8_without_a_mark_is_read(data: bytes | str) -> None:
    with pytest.raises(EncodingError):
        read_json(data)


def test_numbers_keep_their_type() -> None:
    assert read_json(f"[{MAX_INTEGER},-{MAX_INTEGER},1.5,-0]") == [
        MAX_INTEGER,
        -MAX_INTEGER,
        1.5,
        0,
    ]


def test_depth_is_counted_outside_of_text() -> None:
    assert read_json('["' + "[{" * 100 + '\\"["]') == ["[{" * 100 + '"[']
    assert read_json("[" + "[]," * 50 + "[]]") == [[]] * 51
    assert read_json("[" * 32 + "]" * 32) is not None
    siblings = "[]," * 40
    assert read_json("[" * 31 + siblings + "[]" + "]" * 31) is not None
    for text in (
        "[" + siblings + "[" * 32 + "]" * 33,
        "[" * 33 + "]" * 33,
        '{"a":' * 33 + "1" + "}" * 33,
        "[" * 60_000,
    ):
        with pytest.raises(EncodingError):
            read_json(text)


def test_text_without_an_end_is_looked_through_once() -> None:
    began = time.process_time()
    with pytest.raises(EncodingError):
        read_json("[" * 33 + '"' + '\\"' * 30_000)
    # A scan from each quotation mark to the end would take half a minute.
    assert time.process_time() - began < 1


def test_size_is_counted_in_utf8_bytes() -> None:
    for data in ('"éé"', '"éé"'.encode()):
        assert read_json(data, max_bytes=6) == "éé"
    assert read_json('"' + "x" * 65_534 + '"') == "x" * 65_534
    with pytest.raises(EncodingError):
        read_json('"' + "x" * 65_535 + '"')
    for data in ('"éé"', '"éé"'.encode(), '"abcd"'):
        with pytest.raises(EncodingError):
            read_json(data, max_bytes=5)


@pytest.mark.parametrize("text", ["[]", "null", "1", '"a"'])
def test_an_object_is_asked_for(text: str) -> None:
    with pytest.raises(EncodingError):
        read_object(text)


@given(st.binary(max_size=40) | st.text(max_size=40))
def test_reading_json_raises_nothing_else(data: bytes | str) -> None:
    with contextlib.suppress(EncodingError):
        read_json(data)


def test_times_have_one_spelling() -> None:
    at = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
    assert timestamp(at) == "2026-01-31T09:30:00Z"
    assert timestamp(at.replace(microsecond=50)) == "2026-01-31T09:30:00.000050Z"
    assert timestamp(at.astimezone(timezone(timedelta(hours=2)))) == "2026-01-31T09:30:00Z"
    assert parse_timestamp("2026-01-31T09:30:00Z") == at
    assert parse_timestamp("2026-01-31T09:30:00.5Z") == at.replace(microsecond=500_000)


@given(st.datetimes(timezones=st.just(UTC)))
def test_times_read_back(at: datetime) -> None:
    assert parse_timestamp(timestamp(at)) == at


@pytest.mark.parametrize(
    "text",
    [
        "2026-01-31T09:30:00",
        "2026-01-31T09:30:00+00:00",
        "2026-01-31t09:30:00z",
        "2026-01-31 09:30:00Z",
        "2026-02-30T09:30:00Z",
        "2026-01-31T24:30:00Z",
        "2026-01-31T09:30:60Z",
        "2026-01-31T09:30:00.1234567Z",
        "2026-01-31T09:30:00Z\n",
        "２026-01-31T09:30:00Z",
        "",
        None,
        0,
    ],
)
def test_other_spellings_of_a_time_are_refused(text: object) -> None:
    with pytest.raises(EncodingError):
        parse_timestamp(text)


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(EncodingError):
        timestamp(datetime(2026, 1, 31))  # noqa: DTZ001 — the naive time is the point
