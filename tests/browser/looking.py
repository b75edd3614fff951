"""What holds for every page: axe reports nothing, nothing overflows, Tab reaches each control."""

from collections.abc import Iterable
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import CDPSession, ConsoleMessage, Page, Request

Scheme = Literal["light", "dark"]
# A desktop, a tablet, a common phone, the smallest phone. axe runs at the width of PHONE.
WIDTHS: Final = {1440: 900, 768: 1024, 390: 844, 320: 640}
PHONE: Final = 390
SCHEMES: Final[tuple[Scheme, Scheme]] = ("light", "dark")
# The second scheme differs only in colours, so only colour rules run again.
RULES: Final[dict[str, dict[str, object]]] = {
    "every": {"resultTypes": ["violations"], "rules": {"target-size": {"enabled": True}}},
    "colours": {"resultTypes": ["violations"], "runOnly": ["color-contrast", "link-in-text-block"]},
}
AXE: Final = Axe().axe_script
# Tab is pressed once for each control, then MORE_KEYS times a round: parts of a date and boxes that
# scroll are stops too.
MORE_KEYS: Final = 25
ROUNDS: Final = 8
KEYBOARD: Final = (Path(__file__).parent / "keyboard.js").read_text()
TAB: Final = {"type": "rawKeyDown", "key": "Tab", "code": "Tab", "windowsVirtualKeyCode": 9}


class Heard:
    """What the browser reports: errors, blocked content, exceptions, requests to other hosts."""

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.lines: list[str] = []

    def listen(self, page: Page) -> None:
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.lines.append(f"uncaught: {error}"))
        page.on("request", self._request)

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self.lines.append(f"{message.text} {message.location.get('url', '')}".strip())

    def _request(self, request: Request) -> None:
        where = urlsplit(request.url)
        if where.scheme.startswith("http") and f"{where.scheme}://{where.netloc}" != self.origin:
            self.lines.append(f"asked another host: {request.url}")

    def unexpected(self, answers: Iterable[int]) -> list[str]:
        """The lines that the expected statuses (0: no connection) do not explain; clears all."""
        wanted = [f"status of {status}" if status else "ERR_FAILED" for status in answers]
        found = [line for line in self.lines if not any(each in line for each in wanted)]
        self.lines.clear()
        return found


def violations(page: Page, rules: str) -> list[str]:
    """What axe finds, one line per element."""
    found = page.evaluate("async rules => (await axe.run(rules)).violations", RULES[rules])
    return [
        f"{each['id']} {node['target']} {node['failureSummary']}"
        for each in found
        for node in each["nodes"]
    ]


def overflow(page: Page, width: int) -> list[str]:
    """The innermost elements beyond the window's right edge, if it scrolls horizontally at all."""
    page.set_viewport_size({"width": width, "height": WIDTHS[width]})
    found: list[str] = page.evaluate(
        """width => {
          if (document.documentElement.scrollWidth <= width) return [];
          return [...document.querySelectorAll('body *')]
            .filter(e => e.getBoundingClientRect().right > width + 0.5 && !e.children.length)
            .map(e => `${e.tagName} ${e.className} ${e.textContent.trim().slice(0, 40)}`)
            .slice(0, 5)
            .concat('…');
        }""",
        width,
    )
    return [f"scrolls sideways at {width} px: {each}" for each in found]


def walk(page: Page, keys: CDPSession) -> list[str]:
    """Press Tab through the whole page: each control gets the focus, and it is always seen."""
    page.evaluate(KEYBOARD)
    presses, missed = page.evaluate("keyboard.watch()"), ["not walked"]
    for _ in range(ROUNDS):
        for _ in range(presses + 1):
            # No keyUp: it moves nothing, and sending it would double the time.
            keys.send("Input.dispatchKeyEvent", TAB)
        missed = page.evaluate("keyboard.missed()")
        if not missed:
            break
        presses = MORE_KEYS
    return missed


def step(page: Page, keys: CDPSession) -> list[str]:
    """What `walk` finds, for a fraction of its time: a script moves the focus.

    Also whether Tab follows the lines of the page, on a phone and where it is widest.
    """
    page.evaluate(KEYBOARD)
    faults: list[str] = page.evaluate("keyboard.order()")
    keys.send("Input.dispatchKeyEvent", TAB)
    faults += page.evaluate("keyboard.focus()")
    page.set_viewport_size({"width": max(WIDTHS), "height": WIDTHS[max(WIDTHS)]})
    return faults + [f"where it is widest: {each}" for each in page.evaluate("keyboard.order()")]


def look(page: Page, *, scripts: bool = True) -> Iterable[str]:
    """Every fault of the page as it is now: in full in light colours, its colours in dark ones.

    Layout does not depend on the scheme, so the widths are those of the first.
    """
    page.emulate_media(color_scheme=SCHEMES[0], reduced_motion="reduce")
    for width in WIDTHS:
        yield from overflow(page, width)
    page.set_viewport_size({"width": PHONE, "height": WIDTHS[PHONE]})
    if scripts:
        page.evaluate(AXE)
        for scheme, rules in zip(SCHEMES, ("every", "colours"), strict=True):
            page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
            yield from (f"{scheme}: {fault}" for fault in violations(page, rules))
