"""Texts that strangers chose and people read: which characters may stand in a name, a description, a host name."""

import re
import unicodedata
from typing import Final

from .errors import InvalidRequestError
from .reading import text

MAX_NAME: Final = 80
MAX_DESCRIPTION: Final = 500
MAX_HOST: Final = 253

# General categories that never show as themselves: controls, format characters (bidi overrides and isolates,
# zero-width characters, tags, soft hyphen), halves of pairs, private use, line and paragraph separators. Unassigned
# characters are not among them: which they are differs between two versions of Python.
_REFUSED_CATEGORIES: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
# Letters and marks by category, blank on every screen: combining grapheme joiner, Hangul fillers, Khmer inherent
# vowels, Mongolian and other variation selectors, braille blank, half-width filler.
_INVISIBLE: Final = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
_LABEL: Final = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HOST: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")


def _hides(character: str) -> bool:
    category = unicodedata.category(character)
    # The one space is U+0020: the others look like it, or like nothing.
    strange_space = category == "Zs" and character != " "
    return category in _REFUSED_CATEGORIES or strange_space or _INVISIBLE.match(character) is not None


def legible(value: str, *, marks: str = "") -> str:
    r"""Any text as a sentence may hold it: what does not show as itself, and each of `marks`, is written as an escape.

    For texts that are compared by code point and so may hold anything: `\n`, `\u202e`. `marks` are the quotes the
    sentence puts around it, which it must not seem to close.
    """
    return "".join(
        character.encode("unicode_escape").decode("ascii")
        # A mark in front would be drawn on the sentence's own words.
        if _hides(character)
        or character in marks
        or (not index and unicodedata.category(character).startswith("M"))
        else character
        for index, character in enumerate(value)
    )


def _check_readable(value: str, where: str, *, also: str = "") -> str:
    """What a person sees is what was sent. Raises InvalidRequestError naming the code point (CVE-2021-42574)."""
    # Two spellings of one picture would be two names; registration compares by code point.
    if not unicodedata.is_normalized("NFC", value):
        raise InvalidRequestError(f"{where}: must be in Unicode normalisation form NFC.")
    for character in value:
        if character not in also and _hides(character):
            raise InvalidRequestError(f"{where}: must not hold the character U+{ord(character):04X}.")
    # A mark in front would be drawn on the page's own words.
    if value and unicodedata.category(value[0]).startswith("M"):
        raise InvalidRequestError(f"{where}: must not begin with a combining mark.")
    return value


def check_display_name(value: object, where: str = "name") -> str:
    """A name that people see: 1 to 80 characters, NFC, nothing invisible (docs/protocol.md section 5).

    Markup is not refused: it is text, and pages show it as text. Spaces at the ends are refused, because a name
    that differs only there looks the same. Raises InvalidRequestError naming `where`; returns the name unchanged.
    """
    name = _check_readable(text(value, where, maximum=MAX_NAME), where)
    if name != name.strip():
        raise InvalidRequestError(f"{where}: must not begin or end with a space.")
    return name


def check_description(value: object, where: str = "description") -> str:
    """Free text of at most 500 characters under the same rules; it may be empty and may hold line breaks.

    Raises InvalidRequestError naming `where`; returns the text unchanged.
    """
    return _check_readable(text(value, where, minimum=0, maximum=MAX_DESCRIPTION), where, also="\n")


def check_host(value: object, where: str = "model_origin") -> str:
    """A host name in its one form: lower case, labels of letters, digits and hyphens, no dot at the end.

    International names come as A-labels (`xn--…`). An address or anything with a scheme is no host name. Raises
    InvalidRequestError naming `where`.
    """
    if not isinstance(value, str) or len(value) > MAX_HOST or _HOST.fullmatch(value) is None:
        raise InvalidRequestError(f"{where}: must be a host name in lower case, such as models.example.com.")
    # WHATWG URL section 3.5: a last label that is a number, hexadecimal too, makes the whole an IPv4 address.
    if _NUMBER.fullmatch(value.rpartition(".")[2]):
        raise InvalidRequestError(f"{where}: must be a host name, not an address.")
    return value
