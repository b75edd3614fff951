"""Mutations of bytes and texts without a new signature, and JSON values of a wrong type.

Everything here is a function of a `random.Random`, so a seed reproduces a mutant.
"""

import base64
import json
from collections.abc import Callable
from random import Random
from typing import Any

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
# Look-alikes, invisible characters, lone surrogates, non-ASCII digits, and characters that end a
# string for C readers.
UNICODE = (
    "\u0435",
    "\uff21",
    "\u200b",
    "\u202e",
    "\ufeff",
    "\u0660",
    "\u2024",
    "\ud800",
    "\0",
    "\U000e0041",
    "é",
)
SPACES = (" ", "\n", "\r\n", "\t", "\u00a0", "\v")
MESS = (
    "",
    ".",
    "..",
    "...",
    "null",
    "{}",
    "[]",
    "0",
    "Bearer x",
    "A" * 9000,
    "\0",
    "%00",
    "' OR 1=1--",
    "../../etc/passwd",
)

Text = Callable[[Random, str], str]


def spot(random: Random, text: str | bytes) -> int:
    return random.randrange(len(text))


def _byte(random: Random, text: str) -> str:
    at = spot(random, text)
    return text[:at] + chr(random.randrange(256)) + text[at + 1 :]


def _letter(random: Random, text: str) -> str:
    at = spot(random, text)
    return text[:at] + random.choice(ALPHABET) + text[at + 1 :]


def _bit(random: Random, text: str) -> str:
    at = spot(random, text)
    return text[:at] + chr(ord(text[at]) ^ 1 << random.randrange(7)) + text[at + 1 :]


def _insert(random: Random, text: str) -> str:
    at = spot(random, text)
    return text[:at] + random.choice(ALPHABET + ".=+/,") + text[at:]


def _delete(random: Random, text: str) -> str:
    at = spot(random, text)
    return text[:at] + text[at + 1 + random.randrange(4) :]


def _truncate(random: Random, text: str) -> str:
    at = spot(random, text)
    return random.choice((text[:at], text[at:]))


def _unicode(random: Random, text: str) -> str:
    at, strange = spot(random, text), random.choice(UNICODE)
    return text[:at] + strange + text[at + random.randrange(2) :]


def _space(random: Random, text: str) -> str:
    at = random.choice((0, len(text), spot(random, text)))
    return text[:at] + random.choice(SPACES) + text[at:]


def _tail_bits(random: Random, text: str) -> str:
    """Set bits in the last letter that no byte uses: a lax decoder reads the same bytes."""
    parts = text.split(".")
    index = spot(random, "x" * len(parts))
    part = parts[index]
    if part and part[-1] in ALPHABET:
        parts[index] = part[:-1] + ALPHABET[ALPHABET.index(part[-1]) ^ 1 + random.randrange(3)]
    return ".".join(parts)


def _other_base64(random: Random, text: str) -> str:
    padded = text + "=" * random.randrange(1, 4)
    return random.choice(
        (padded, text.replace("-", "+").replace("_", "/"), text.replace(".", "=.", 1))
    )


def _case(random: Random, text: str) -> str:
    return random.choice((text.swapcase(), text.lower(), text.upper(), text[::-1]))


def _mess(random: Random, text: str) -> str:
    mess = random.choice(MESS)
    return random.choice((mess, text + mess, mess + text, f"{text},{text}", text * 20))


# For any base64url text below a signature.
TEXTS: dict[str, Text] = {
    "byte": _byte,
    "letter": _letter,
    "bit": _bit,
    "insert": _insert,
    "delete": _delete,
    "truncate": _truncate,
    "unicode": _unicode,
    "space": _space,
    "tail bits": _tail_bits,
    "other base64": _other_base64,
    "case": _case,
    "mess": _mess,
}


def changed_text(random: Random, text: str) -> tuple[str, str]:
    """The rule's name and a text other than `text`; a draw that equals it is repeated."""
    while True:
        rule = random.choice(list(TEXTS))
        if (mutant := TEXTS[rule](random, text)) != text:
            return rule, mutant


def changed_bytes(random: Random, data: bytes) -> bytes:
    """Other bytes: a bit or byte changed, some removed or added, zeros, ones."""
    while True:
        at = spot(random, data)
        mutant = random.choice(
            (
                data[:at] + bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 :],
                data[:at] + random.randbytes(1) + data[at + 1 :],
                data[:at] + data[at + 1 :],
                data[:at],
                data[:at] + random.randbytes(1) + data[at:],
                data + random.randbytes(1 + random.randrange(40)),
                bytes(len(data)),
                b"\xff" * len(data),
                data + data,
            )
        )
        if mutant != data:
            return mutant


def confused(random: Random, value: object) -> Any:
    """A JSON value of another type than `value`, similar to it where possible."""
    choices: list[Any] = [None, [], {}, 1.5, -0.0, [None], {"": None}, [[]]]
    if not isinstance(value, str):
        choices += ["", "null", json.dumps(value, default=str)]
    if not isinstance(value, bool):
        choices += [True, False]
    if type(value) is not int:
        choices += [0, 1, -1, 2**53 - 1]
    if type(value) is int:
        choices += [float(value), str(value), [value], {"value": value}]
    if isinstance(value, str):
        choices += [[value, value], {"value": value}, list(value[:8])]
    if isinstance(value, dict):
        choices = [each for each in choices if not isinstance(each, dict)] + [[value], list(value)]
    if isinstance(value, list):
        choices = [each for each in choices if not isinstance(each, list)] + [
            dict.fromkeys("ab", value)
        ]
    return random.choice(choices)


def paths(value: object, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every item in a JSON value, at every depth."""
    if isinstance(value, dict):
        return [at] * bool(at) + [
            found for name, each in value.items() for found in paths(each, (*at, name))
        ]
    if isinstance(value, list):
        return [at] * bool(at) + [
            found for index, each in enumerate(value) for found in paths(each, (*at, index))
        ]
    return [at]


def put(value: Any, path: tuple[Any, ...], new: object) -> Any:
    """A copy of `value` with `new` at `path`; `...` removes the item."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    if len(path) == 1 and new is ...:
        del copy[path[0]]
    else:
        copy[path[0]] = put(copy[path[0]], path[1:], new)
    return copy


def get(value: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        value = value[step]
    return value


def altered(random: Random, value: Any) -> Any:
    """Another JSON value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + random.choice((-1, 1, 60, 2**31))
    if isinstance(value, str):
        return _letter_changed(random, value) if value else "x"
    if isinstance(value, list):
        return value[1:] if value else [0]
    if isinstance(value, dict):
        return dict(list(value.items())[1:]) if value else {"x": 0}
    return 0


def _letter_changed(random: Random, value: str) -> str:
    at = spot(random, value)
    return value[:at] + ("b" if value[at] == "a" else "a") + value[at + 1 :]


def b64(data: bytes) -> str:
    """The tests' own encoder, so that the code under test does not make its own test data."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def broken_json(random: Random, good: dict[str, Any]) -> tuple[str, bytes]:
    """The rule's name, and bytes made from a good object that a strict JSON reader refuses."""
    text = json.dumps(good)
    name = random.choice(list(good))
    twice = f"{{{json.dumps(name)}: {json.dumps(good[name])}, {text[1:]}"
    wholes: dict[str, bytes] = {
        "twice": twice.encode(),
        "twice by escape": twice.replace(
            f'"{name}"', f'"\\u{ord(name[0]):04x}{name[1:]}"', 1
        ).encode(),
        "array": f"[{text}]".encode(),
        "text": json.dumps(text).encode(),
        "null": random.choice((b"null", b"true", b"0", b'""', b"", b" ")),
        "bom": b"\xef\xbb\xbf" + text.encode(),
        "utf-16": text.encode(random.choice(("utf-16", "utf-16-le", "utf-32"))),
        "not utf-8": text.encode()[:-1]
        + b', "x": "'
        + random.choice((b"\xff", b"\xc0\x80", b"\xed\xa0\x80"))
        + b'"}',
        "after it": text.encode() + random.choice((b"}", b"{}", b",", b"\0", text.encode())),
        "cut": text.encode()[: spot(random, text)],
        "nan": _with(text, random.choice(("NaN", "Infinity", "-Infinity", "1e400", "-1e999"))),
        "huge number": _with(
            text, random.choice(("9" * 400, str(2**53), str(-(2**53)), "1" * 5000))
        ),
        "half a pair": _with(text, random.choice(('"\\ud800"', '"\\udfff"', '"\\ud800x"'))),
        "nul": _with(text, '"\\u0000"'),
        "deep": _with(text, "[" * (depth := 33 + random.randrange(2000)) + "]" * depth),
        "lax": random.choice(
            (
                text.replace('"', "'"),
                text[:-1] + ",}",
                "/**/" + text[:-1] + "//",
                text.replace(":", "="),
            )
        ).encode(),
    }
    rule = random.choice(list(wholes))
    return rule, wholes[rule]


def _with(text: str, literal: str) -> bytes:
    """The object with one more member. The value is the fault, so the name need not be known."""
    return f'{text[:-1]}, "x": {literal}}}'.encode()
