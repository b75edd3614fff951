"""Texts that untrusted parties choose and people read: which characters a name, a description or a
host name may have.
"""

import re
import unicodedata
from typing import Final

from .errors import InvalidRequestError
from .json_fields import text

MAX_NAME: Final = 80
MAX_DESCRIPTION: Final = 500
MAX_HOST: Final = 253

# General categories that are not displayed as themselves: controls, format characters (bidi
# overrides and isolates, zero-width characters, tags, soft hyphen), surrogates, private use, line
# and paragraph separators. Unassigned characters are not included: which they are differs between
# Python versions.
_REFUSED_CATEGORIES: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
# Default_Ignorable_Code_Point (DerivedCoreProperties.txt, Unicode 16): displayed as nothing, even
# where no character is assigned yet. Listed here because `unicodedata` lacks the property and the
# unassigned code points differ between Python versions.
_DEFAULT_IGNORABLE: Final = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
# Blank although their category is symbol, letter or mark: a braille pattern, a note head, two
# hieroglyphs and the filler of the Khitan small script.
_BLANK: Final = "\u2800\U0001d159\U00013441\U00013442\U00016fe4"
_INVISIBLE: Final = re.compile(f"[{_DEFAULT_IGNORABLE}{_BLANK}]")
# Characters that look like the quotation marks around a name or value in our sentences (UTS #39:
# the skeleton of U+0022, and marks drawn as a pair of strokes).
_QUOTES: Final = re.compile(
    '["\u00ab\u00bb\u02ba\u02dd\u02ee\u02f5\u02f6\u05f2\u05f4\u1cd3\u201c-\u201f\u2033\u2036\u2057\u275d\u275e\u2e42'
    "\u3003\u301d-\u301f\uff02\U0001f676-\U0001f678]"
)
# UTS #39 section 5.4: no script needs more marks on one letter. A longer stack is drawn over the
# lines around it.
MAX_MARKS: Final = 4
# Characters after the backslash of an escape, and the backslash itself, which is doubled.
_ESCAPED: Final = frozenset("\\nrtux")
# Two of these in a row look like a quotation mark.
_STROKES: Final = frozenset(
    "'`\u00b4\u02b9\u02bb\u02bc\u02bd\u02c8\u02ca\u02cb\u2018\u2019\u201a\u201b\u2032\u2035\uff07\uff40"
)
_LABEL: Final = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HOST: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")


def _hides(character: str) -> bool:
    category = unicodedata.category(character)
    # U+0020 is the only space allowed: the others look like it, or like nothing.
    strange_space = category == "Zs" and character != " "
    return (
        category in _REFUSED_CATEGORIES or strange_space or _INVISIBLE.match(character) is not None
    )


def _escape(character: str) -> str:
    r"""Write an invisible character as a visible escape: `\n`, `\x7f`, `\u{202e}`."""
    if character.isascii() and not character.isprintable():
        return character.encode("unicode_escape").decode("ascii")
    return f"\\u{{{ord(character):x}}}"


def _surplus_marks(value: str) -> set[int]:
    """Positions of combining marks at the beginning, or on a letter with `MAX_MARKS` already."""
    found, count = set(), MAX_MARKS
    for index, character in enumerate(value):
        count = count + 1 if unicodedata.category(character) in {"Mn", "Me"} else 0
        # A leading mark would be drawn on the sentence before the name.
        if count > MAX_MARKS or (not index and unicodedata.category(character).startswith("M")):
            found.add(index)
    return found


def legible(value: str, *, in_quotes: bool = False) -> str:
    r"""Make any text readable: what is not displayed as itself becomes an escape, `\n` or
    `\u{202e}`.

    For texts that are compared by code point and may hold anything. A backslash that would read as
    the start of an escape, or stands before one, is doubled: two different texts never look the
    same. With `in_quotes`, quotation marks are escaped too, and in a row of strokes all but the
    first: a text must not seem to close the quotation marks around it.
    """
    surplus, shown, following = _surplus_marks(value), list[str](), ""
    for index in reversed(range(len(value))):
        each, before = value[index], value[index - 1] if index else ""
        closes = bool(_QUOTES.match(each)) or (each in _STROKES and before in _STROKES)
        if _hides(each) or index in surplus or (in_quotes and closes):
            each = _escape(each)
        elif each == "\\" and following in _ESCAPED:
            each = r"\\"
        shown.append(each)
        following = each[0]
    return "".join(reversed(shown))


def printable(value: str) -> str:
    r"""One line for a terminal: what is not displayed as itself becomes an escape, so no text can
    move the cursor or change the line.

    Unlike `legible` it keeps backslashes, so earlier escapes stay as they are.
    """
    surplus = _surplus_marks(value)
    return "".join(
        _escape(each) if _hides(each) or index in surplus else each
        for index, each in enumerate(value)
    )


def _check_readable(value: str, where: str, *, also: str = "") -> str:
    """Check that what a person sees is what was sent.

    Raises InvalidRequestError naming the code point (CVE-2021-42574).
    """
    # Registration compares by code point: two encodings of the same letters would be two names.
    if not unicodedata.is_normalized("NFC", value):
        raise InvalidRequestError(f"{where}: must be in Unicode normalisation form NFC.")
    for character in value:
        if character not in also and _hides(character):
            raise InvalidRequestError(
                f"{where}: must not contain the character U+{ord(character):04X}."
            )
    if _surplus_marks(value):
        raise InvalidRequestError(
            f"{where}: must not begin with a combining mark, nor have more than {MAX_MARKS} "
            "in a row."
        )
    return value


def check_display_name(value: object, where: str = "name") -> str:
    """A displayed name: 1 to 80 characters, NFC, nothing invisible (docs/protocol.md section 5).

    Markup is allowed: pages show it as text. Spaces at the ends are refused, because a name that
    differs only there looks the same. Raises InvalidRequestError naming `where`; returns the name
    unchanged.
    """
    name = _check_readable(text(value, where, maximum=MAX_NAME), where)
    if name != name.strip():
        raise InvalidRequestError(f"{where}: must not begin or end with a space.")
    return name


def check_quotable(value: object, where: str, *, maximum: int) -> str:
    """A text that pages show between quotation marks: as a name, of at most `maximum` characters.

    It has nothing that `legible` would escape in quotation marks, so what was sent is what people
    read. Raises InvalidRequestError naming `where`; returns the text unchanged.
    """
    words = _check_readable(text(value, where, maximum=maximum), where)
    if words != words.strip():
        raise InvalidRequestError(f"{where}: must not begin or end with a space.")
    if legible(words, in_quotes=True) != words:
        raise InvalidRequestError(
            f"{where}: must not contain quotation marks, two strokes in a row or an escape."
        )
    return words


def check_description(value: object, where: str = "description") -> str:
    """Free text of at most 500 characters under the same rules; it may be empty and may have line
    feeds.

    Raises InvalidRequestError naming `where`; returns the text unchanged.
    """
    return _check_readable(text(value, where, minimum=0, maximum=MAX_DESCRIPTION), where, also="\n")


def check_host(value: object, where: str = "model_origin") -> str:
    """A canonical host name: lower case, labels of letters, digits and hyphens, no dot at the end.

    International names come as A-labels (`xn--…`). IP addresses and anything with a scheme are
    refused. Raises InvalidRequestError naming `where`.
    """
    if not isinstance(value, str) or len(value) > MAX_HOST or _HOST.fullmatch(value) is None:
        raise InvalidRequestError(
            f"{where}: must be a host name in lower case, such as models.example.com."
        )
    # WHATWG URL section 3.5: a last label that is a number, hexadecimal too, makes the whole an
    # IPv4 address.
    if _NUMBER.fullmatch(value.rpartition(".")[2]):
        raise InvalidRequestError(f"{where}: must be a host name, not an address.")
    return value
