"""The link that a person opens: as text everywhere, as a QR code on a terminal."""

import builtins
import io
from typing import Any

import pytest
import segno

from agentauth.sdk.link_display import link_text, qr_code, show_link
from agentauth.sdk.registry_answers import Confirmation, Grant

LINK = "https://registry.example.com/claim/secret/?grant=1"


class Terminal(io.StringIO):
    def __init__(self, encoding: str = "utf-8") -> None:
        super().__init__()
        self._encoding = encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding

    def isatty(self) -> bool:
        return True


def pending(link: str | None = LINK, code: str | None = "ABCD2345") -> Grant:
    return Grant("g", "pending", "sp", approval_url=link, claim_code=code)


def has_blocks(text: str) -> bool:
    return "█" in text


def test_a_terminal_gets_a_qr_code_and_the_text() -> None:
    out = Terminal()
    show_link(pending(), out)
    assert has_blocks(out.getvalue())
    assert out.getvalue().endswith(
        f"Open {LINK} and decide.\nThe page asks for this code: ABCD2345\n"
    )
    assert max(map(len, out.getvalue().splitlines())) < 80


def test_a_file_gets_the_text_alone() -> None:
    out = io.StringIO()
    show_link(pending(code=None), out)
    assert out.getvalue() == f"Open {LINK} and decide.\n"


def test_the_code_is_not_in_the_qr_code(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    make = segno.make

    def spy(text: str, **how: Any) -> Any:
        drawn.append(text)
        return make(text, **how)

    monkeypatch.setattr(segno, "make", spy)
    show_link(pending(), Terminal())
    assert drawn == [LINK]


def test_without_segno_the_text_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "segno":
            raise ImportError(name)
        return usual(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    assert qr_code(LINK) is None
    out = Terminal()
    show_link(pending(), out)
    assert out.getvalue().startswith("Open ")


@pytest.mark.parametrize("link", ["http://localhost:8000/claim/x/", "http://127.0.0.1:1/x/"])
def test_a_link_to_this_machine_has_no_qr_code(link: str) -> None:
    out = Terminal()
    show_link(pending(link), out)
    assert not has_blocks(out.getvalue())


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "no-such-encoding"])
def test_a_terminal_without_blocks_gets_the_text_alone(encoding: str) -> None:
    out = Terminal(encoding)
    show_link(pending(), out)
    assert out.getvalue().startswith("Open ")


@pytest.mark.parametrize("link", ["https://x.example/" + "x" * 400, "https://x.example/\x1b[2J"])
def test_a_hostile_link_is_not_drawn_and_is_escaped(link: str) -> None:
    assert qr_code(link) is None
    assert "\x1b" not in link_text(pending(link))


def test_a_confirmation_is_shown_too() -> None:
    out = io.StringIO()
    show_link(Confirmation("c", "pending", LINK), out)
    assert out.getvalue() == f"Open {LINK} and decide.\n"
    assert link_text(pending(None, None)) == "Open the registry and decide."
