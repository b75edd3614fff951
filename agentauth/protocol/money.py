"""Money as integer minor units of an ISO 4217 currency. No float anywhere: it would round."""

import re
from dataclasses import dataclass
from typing import Final, Self

from .errors import InvalidRequestError
from .json_fields import INTEGER_LIMIT, members, quote_safely, text

# ISO 4217 list one, active codes with a minor unit (2026), by number of decimal digits. Metals,
# test codes and "no currency" are left out: nothing is paid in them.
_CODES_BY_DIGITS: Final = {
    0: "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF",
    2: (
        "AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BMD BND BOB BOV BRL BSD BTN BWP BYN "
        "BZD CAD CDF CHE CHF"
        " CHW CNY COP COU CRC CUP CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP "
        "GMD GTQ GYD HKD HNL"
        " HTG HUF IDR ILS INR IRR JMD KES KGS KHR KPW KYD KZT LAK LBP LKR LRD LSL MAD MDL MGA "
        "MKD MMK MNT MOP MRU"
        " MUR MVR MWK MXN MXV MYR MZN NAD NGN NIO NOK NPR NZD PAB PEN PGK PHP PKR PLN QAR RON "
        "RSD RUB SAR SBD SCR"
        " SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TOP TRY TTD TWD TZS UAH "
        "USD USN UYU UZS VED"
        " VES WST XAD XCD XCG YER ZAR ZMW ZWG"
    ),
    3: "BHD IQD JOD KWD LYD OMR TND",
    4: "CLF UYW",
}
MINOR_DIGITS: Final[dict[str, int]] = {
    code: digits for digits, codes in _CODES_BY_DIGITS.items() for code in codes.split()
}

# One spelling per number: no sign, exponent, leading zero or bare point. `\d` would match the
# digits of every script.
_DECIMAL: Final = re.compile(r"(0|[1-9][0-9]{0,11})(?:\.([0-9]{1,4}))?")


@dataclass(frozen=True, slots=True)
class Money:
    """An amount: `minor` units (cents for EUR), never negative, below 2^53, of `currency` (ISO
    4217).
    """

    # An integer, so that sums are exact and 2^53 is the only bound.
    minor: int
    currency: str

    @classmethod
    def parse(cls, obj: object, where: str = "amount", *, allow_zero: bool = False) -> Self:
        """Read `{"value": decimal string, "currency": code}` (docs/protocol.md section 3).

        Raises InvalidRequestError naming the member. Zero is refused unless `allow_zero`: a limit
        or a payment of nothing is a mistake everywhere but in `confirm_above`, where it means that
        every payment is confirmed.
        """
        body = members(obj, where, required=("value", "currency"))
        return cls.of(body["value"], body["currency"], where, allow_zero=allow_zero)

    @classmethod
    def of(
        cls, value: object, currency: object, where: str = "amount", *, allow_zero: bool = False
    ) -> Self:
        """Read the two parts of an amount, as `Money.of("100.00", "EUR")`.

        Raises InvalidRequestError.
        """
        code = text(currency, f"{where}.currency", maximum=64)
        digits = MINOR_DIGITS.get(code)
        if digits is None:
            raise InvalidRequestError(
                f"{where}.currency: {quote_safely(code)} is not an active ISO 4217 code."
            )
        # A JSON number may have been rounded before it reaches us, so require a string.
        if not isinstance(value, str) or (match := _DECIMAL.fullmatch(value)) is None:
            raise InvalidRequestError(
                f"{where}.value: must be a decimal string such as '100.00' with at most 12 "
                "integer digits."
            )
        whole, fraction = match[1], match[2] or ""
        # Refused, not rounded: either direction would change someone's money.
        if len(fraction) > digits:
            raise InvalidRequestError(f"{where}.value: {code} has {digits} decimal digits.")
        minor = int(whole + fraction.ljust(digits, "0"))
        # Twelve integer digits and four decimals can exceed the bound of all other integers here.
        if minor >= INTEGER_LIMIT:
            raise InvalidRequestError(f"{where}.value: is too large.")
        if minor == 0 and not allow_zero:
            raise InvalidRequestError(f"{where}.value: must be greater than zero.")
        return cls(minor, code)

    @property
    def value(self) -> str:
        """The decimal string with all of the currency's digits: equal amounts are equal texts."""
        digits = MINOR_DIGITS[self.currency]
        if digits == 0:
            return str(self.minor)
        padded = str(self.minor).rjust(digits + 1, "0")
        return f"{padded[:-digits]}.{padded[-digits:]}"

    def to_json(self) -> dict[str, str]:
        """`{"value", "currency"}` as on the wire."""
        return {"value": self.value, "currency": self.currency}

    def within(self, ceiling: "Money") -> bool:
        """Is this at most `ceiling`, in the same currency? Two currencies are never comparable."""
        return self.currency == ceiling.currency and self.minor <= ceiling.minor
