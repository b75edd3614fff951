"""Amounts: one spelling, no float, only what the currency can hold."""

from typing import Any

import pytest

from agentauth.protocol.errors import InvalidRequestError
from agentauth.protocol.money import _CODES_BY_DIGITS, MINOR_DIGITS, Money


def money(value: Any, currency: Any = "EUR") -> Money:
    return Money.parse({"value": value, "currency": currency}, "max_amount")


@pytest.mark.parametrize(
    ("value", "currency", "minor", "text"),
    [
        ("100.00", "EUR", 10_000, "100.00"),
        ("100", "EUR", 10_000, "100.00"),
        ("0.01", "EUR", 1, "0.01"),
        ("0.5", "EUR", 50, "0.50"),
        ("100", "JPY", 100, "100"),
        ("1.234", "KWD", 1234, "1.234"),
        ("999999999999.99", "EUR", 99_999_999_999_999, "999999999999.99"),
        ("1.2345", "CLF", 12345, "1.2345"),
    ],
)
def test_an_amount_is_read_into_minor_units_and_written_with_all_digits(
    value: str, currency: str, minor: int, text: str
) -> None:
    assert money(value, currency).minor == minor
    assert money(value, currency).value == text


BAD_VALUES = [
    "-1.00", "0", "0.00", "NaN", "Infinity", "1e3", "1e309", "+1", " 1", "1 ", "1\n", "1.", ".5",
    "01", "1,00", "",
    "1.001", "0x10", "1_000", "１", "٣", "9" * 13, "9" * 30, "9" * 5000, 100, 100.0, 1e308, True,
    None, ["1"], {"a": 1},
]  # fmt: skip


@pytest.mark.parametrize("value", BAD_VALUES, ids=lambda value: ascii(value)[:20])
def test_EN_14_an_amount_that_is_not_a_positive_decimal_string_is_refused(value: Any) -> None:
    with pytest.raises(InvalidRequestError, match=r"max_amount\.value: "):
        money(value)


@pytest.mark.parametrize(
    ("value", "currency"),
    [("1.0", "JPY"), ("1.2345", "KWD"), ("900719925474.0992", "CLF"), ("1.00000", "CLF")],
)
def test_EN_14_more_digits_than_the_currency_or_a_double_has_are_refused(
    value: str, currency: str
) -> None:
    with pytest.raises(InvalidRequestError, match="value"):
        money(value, currency)


@pytest.mark.parametrize(
    "currency", ["eur", "EURO", "XAU", "XXX", "ZZZ", "", None, 978, ["EUR"], "EUR\x00", "\ud800"]
)
def test_a_currency_outside_the_table_is_refused(currency: Any) -> None:
    with pytest.raises(InvalidRequestError, match=r"max_amount\.currency: "):
        money("1", currency)


@pytest.mark.parametrize("body", [None, "1 EUR", [], {}, {"value": "1"}, {"currency": "EUR"}])
def test_money_without_both_members_is_refused(body: Any) -> None:
    with pytest.raises(InvalidRequestError, match="max_amount"):
        Money.parse(body, "max_amount")


def test_an_unknown_member_of_money_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="scale"):
        Money.parse({"value": "1", "currency": "EUR", "scale": 2})


def test_the_largest_amount_is_the_largest_integer_of_a_double() -> None:
    assert money("900719925474.0991", "CLF").minor == 2**53 - 1


def test_two_currencies_are_never_comparable() -> None:
    assert money("1", "EUR").within(money("1", "EUR"))
    assert not money("1.01").within(money("1"))
    assert not money("1", "USD").within(money("100", "EUR"))


def test_the_table_has_each_code_once_and_the_digits_that_often_go_wrong() -> None:
    assert all(len(code) == 3 and code.isalpha() and code.isupper() for code in MINOR_DIGITS)
    assert {MINOR_DIGITS[code] for code in ("ISK", "UGX", "KRW", "XOF")} == {0}
    assert {MINOR_DIGITS[code] for code in ("TND", "IQD", "LYD")} == {3}
    assert {MINOR_DIGITS[code] for code in ("HUF", "MGA", "MRU", "TWD", "IDR")} == {2}
    assert len(MINOR_DIGITS) == sum(len(codes.split()) for codes in _CODES_BY_DIGITS.values())
