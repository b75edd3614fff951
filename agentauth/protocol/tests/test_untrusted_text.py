"""What names may contain, and how any text is made legible: nothing invisible passes, in
any version of Unicode.
"""

import unicodedata
from collections.abc import Callable
from itertools import product

import pytest

from agentauth.protocol.errors import InvalidRequestError
from agentauth.protocol.untrusted_text import (
    check_description,
    check_display_name,
    legible,
    printable,
)

# Default_Ignorable_Code_Point as DerivedCoreProperties.txt of Unicode 16 lists it: range and
# general category there.
DERIVED = """
00AD          ; Cf       SOFT HYPHEN
034F          ; Mn       COMBINING GRAPHEME JOINER
061C          ; Cf       ARABIC LETTER MARK
115F..1160    ; Lo   [2] HANGUL CHOSEONG FILLER..HANGUL JUNGSEONG FILLER
17B4..17B5    ; Mn   [2] KHMER VOWEL INHERENT AQ..KHMER VOWEL INHERENT AA
180B..180D    ; Mn   [3] MONGOLIAN FREE VARIATION SELECTOR ONE..MONGOLIAN FREE VARIATION SELECTOR THREE
180E          ; Cf       MONGOLIAN VOWEL SEPARATOR
180F          ; Mn       MONGOLIAN FREE VARIATION SELECTOR FOUR
200B..200F    ; Cf   [5] ZERO WIDTH SPACE..RIGHT-TO-LEFT MARK
202A..202E    ; Cf   [5] LEFT-TO-RIGHT EMBEDDING..RIGHT-TO-LEFT OVERRIDE
2060..2064    ; Cf   [5] WORD JOINER..INVISIBLE PLUS
2065          ; Cn       <reserved-2065>
2066..206F    ; Cf  [10] LEFT-TO-RIGHT ISOLATE..NOMINAL DIGIT SHAPES
3164          ; Lo       HANGUL FILLER
FE00..FE0F    ; Mn  [16] VARIATION SELECTOR-1..VARIATION SELECTOR-16
FEFF          ; Cf       ZERO WIDTH NO-BREAK SPACE
FFA0          ; Lo       HALFWIDTH HANGUL FILLER
FFF0..FFF8    ; Cn   [9] <reserved-FFF0>..<reserved-FFF8>
1BCA0..1BCA3  ; Cf   [4] SHORTHAND FORMAT LETTER OVERLAP..SHORTHAND FORMAT UP STEP
1D173..1D17A  ; Cf   [8] MUSICAL SYMBOL BEGIN BEAM..MUSICAL SYMBOL END PHRASE
E0000         ; Cn       <reserved-E0000>
E0001         ; Cf       LANGUAGE TAG
E0002..E001F  ; Cn  [30] <reserved-E0002>..<reserved-E001F>
E0020..E007F  ; Cf  [96] TAG SPACE..CANCEL TAG
E0080..E00FF  ; Cn [128] <reserved-E0080>..<reserved-E00FF>
E0100..E01EF  ; Mn [240] VARIATION SELECTOR-17..VARIATION SELECTOR-256
E01F0..E0FFF  ; Cn [3600] <reserved-E01F0>..<reserved-E0FFF>
"""  # noqa: E501


def quoted(value: str) -> str:
    """A text in quotation marks, as pages show it in English."""
    return f"“{legible(value, in_quotes=True)}”"


def code_points(category: str = "") -> list[str]:
    found = []
    for row in DERIVED.strip().splitlines():
        span, _, rest = row.partition(";")
        first, _, last = span.strip().partition("..")
        if rest.split()[0].startswith(category):
            found += [chr(each) for each in range(int(first, 16), int(last or first, 16) + 1)]
    return found


def test_SA_4_the_list_is_the_standards() -> None:
    assert len(code_points()) == 4174
    assert len(code_points("Cn")) == 3769


def test_SA_4_no_default_ignorable_code_point_is_in_a_name() -> None:
    for character in code_points():
        with pytest.raises(InvalidRequestError, match=f"name.*(U\\+{ord(character):04X}|NFC)"):
            check_display_name(f"Good{character}Agent")
        with pytest.raises(InvalidRequestError, match="description"):
            check_description(f"Good{character}Agent")


def test_SA_4_each_of_them_is_escaped_in_a_text() -> None:
    for character in code_points():
        assert legible(f"a{character}b") == f"a\\u{{{ord(character):x}}}b"
        assert quoted(f"a{character}b") == f"“a\\u{{{ord(character):x}}}b”"


@pytest.mark.parametrize("character", "\u2800\U0001d159\U00013441\U00013442\U00016fe4", ids=ascii)
def test_a_blank_glyph_is_in_no_name_and_escaped_in_a_text(character: str) -> None:
    for blank in (character, f"AgentAuth{character}"):
        with pytest.raises(InvalidRequestError, match=f"U\\+{ord(character):04X}"):
            check_display_name(blank)
    assert quoted(f"a{character}b") == f"“a\\u{{{ord(character):x}}}b”"


def test_typed_escape_is_distinct_from_a_generated_one() -> None:
    assert (
        legible("\u200b \\u{200b} \\n \\\\n a\\b") == "\\u{200b} \\\\u{200b} \\\\n \\\\\\\\n a\\b"
    )
    assert legible("\n\t\x7f\x85") == "\\n\\t\\x7f\\u{85}"


@pytest.mark.parametrize("show", [legible, quoted])
def test_AP_24_no_two_texts_read_the_same(show: Callable[[str], str]) -> None:
    """Every text of up to four of these: parts of escapes, and characters that are escaped."""
    parts = ["\\", "n", "u", "{a}", "a", "\n", "\u200b", "“", "'", "\u0302"]
    texts = {"".join(each) for size in range(5) for each in product(parts, repeat=size)}
    assert len({show(text) for text in texts}) == len(texts)


@pytest.mark.parametrize(("first", "second"), ["''", "’’", "‘'", "'′", "`´"])
def test_AP_24_two_strokes_do_not_pass_for_a_quotation_mark(first: str, second: str) -> None:
    stroke = first + second
    assert quoted(f"x{stroke} y{first}z") == f"“x{first}\\u{{{ord(second):x}}} y{first}z”"
    assert legible(f"x{stroke} y") == f"x{stroke} y"


@pytest.mark.parametrize(
    "mark", ["“", "”", "„", "‟", '"', "＂", "″", "❞", "〞", "«", "»", "ˮ", "״"]
)
def test_AP_24_no_text_seems_to_close_the_quotation_marks_around_it(mark: str) -> None:
    assert quoted(f"x{mark} y") == f"“x\\u{{{ord(mark):x}}} y”"
    assert legible(f"x{mark} y") == f"x{mark} y"


def test_AP_22_marks_that_pile_up_are_refused_and_escaped() -> None:
    tall = "e" + "\u0302" * 4
    composed = unicodedata.normalize("NFC", tall + "\u0302")
    assert check_display_name(composed) == composed
    over = composed + "\u0302"
    with pytest.raises(InvalidRequestError, match="in a row"):
        check_display_name(over)
    assert legible(over) == composed + "\\u{302}"
    assert legible("\u0302x") == "\\u{302}x"


def test_a_line_for_a_terminal_is_escaped_once() -> None:
    shown = printable("\x1b[8m\n\x9b\u202e\ud800 C:\\new \U0001f600 e\u0301" + "\u0301" * 4)
    assert (
        shown
        == r"\x1b[8m\n\u{9b}\u{202e}\u{d800} C:\new \U0001f600 e".replace(
            r"\U0001f600", "\U0001f600"
        )
        + "\u0301" * 4
        + r"\u{301}"
    )
    assert printable(shown) == shown
