"""Every page and state: no axe violation in either colour scheme, no horizontal overflow, a clean
console.

`--screenshots` (`make screenshots`) also keeps the pictures, at 320 and 1280 px, light and dark, in
screenshots/.
"""

from collections.abc import Callable, Iterator
from typing import Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page

from tests.browser import steps
from tests.browser.conftest import add_authenticator
from tests.browser.hostile_stage import PERSON
from tests.browser.screens import RESTORE_SCREENS, SCREENS, Screen, Theatre
from tests.live import ROOT, LiveRegistry

pytestmark = [pytest.mark.browser, pytest.mark.flow]
PICTURES = ROOT / "screenshots"
PHONE, DESK = 320, 1280
HEIGHTS = {PHONE: 640, 360: 780, DESK: 800}
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
# The second scheme differs only in colours, so only colour rules run again.
RULES: dict[str, dict[str, object]] = {
    "light": {"resultTypes": ["violations"], "rules": {"target-size": {"enabled": True}}},
    "dark": {"resultTypes": ["violations"], "runOnly": ["color-contrast", "link-in-text-block"]},
}
AXE = Axe().axe_script


class Console:
    """What the browser reports: errors, blocked styles and scripts, uncaught exceptions."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def listen(self, page: Page) -> None:
        page.on("console", self.heard)
        page.on("pageerror", lambda error: self.lines.append(f"uncaught: {error}"))

    def heard(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self.lines.append(message.text)

    def unexpected(self, screen: Screen) -> list[str]:
        wanted = [f"status of {status}" for status in screen.answers] + ["ERR_FAILED"] * (
            0 in screen.answers
        )
        return [line for line in self.lines if not any(each in line for each in wanted)]


@pytest.fixture(scope="module")
def console() -> Console:
    return Console()


@pytest.fixture(scope="module")
def enter(chromium: Browser) -> Iterator[Callable[..., Page]]:
    """Opens a page in a new context, which lives as long as the module's tests."""
    contexts: list[BrowserContext] = []

    def entered(**options: object) -> Page:
        context = chromium.new_context(locale="en-GB", timezone_id="Europe/Berlin", **options)  # type: ignore[arg-type]
        context.set_default_timeout(10_000)
        contexts.append(context)
        return context.new_page()

    yield entered
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def theatre(enter: Callable[..., Page], sqlite_registry: LiveRegistry, console: Console) -> Theatre:
    alice, bob = enter(), enter()
    for page in (alice, bob):
        add_authenticator(page)
    steps.become_admin(alice, sqlite_registry)
    steps.be_invited(bob, sqlite_registry, name=PERSON, email="bob@example.org")
    paths = steps.stage(sqlite_registry, "set_up", "alice@example.org")
    session = alice.context.storage_state()
    keyless = enter(storage_state=session)
    keyless.add_init_script("delete window.PublicKeyCredential")
    scriptless = enter(storage_state=session, java_script_enabled=False)
    for page in (alice, bob, visitor := enter(), scriptless, keyless):
        console.listen(page)
    return Theatre(sqlite_registry, paths, alice, bob, visitor, scriptless, keyless)


@pytest.fixture(scope="module")
def restored(
    enter: Callable[..., Page], tmp_path_factory: pytest.TempPathFactory, console: Console
) -> Iterator[Theatre]:
    """A registry restored from a backup; Alice has signed in again."""
    folder = tmp_path_factory.mktemp("restored")
    registry = LiveRegistry(folder, workers=1, env={"AUDIT_STORE": f"file:{folder / 'outside'}"})
    registry.prepare()
    registry.start()
    try:
        alice = enter()
        add_authenticator(alice)
        steps.become_admin(alice, registry)
        steps.stage(registry, "set_up", "alice@example.org")
        paths = steps.stage(registry, "restore", "alice@example.org")
        steps.sign_in(alice, registry)
        console.listen(alice)
        yield Theatre(registry, paths, alice, *[alice] * 4)
    finally:
        registry.stop()


@pytest.mark.parametrize("name", SCREENS)
def test_screen(
    name: str, theatre: Theatre, console: Console, request: pytest.FixtureRequest
) -> None:
    look(name, SCREENS[name], theatre, console, keep=request.config.getoption("--screenshots"))


@pytest.mark.parametrize("name", RESTORE_SCREENS)
def test_screen_after_a_restore(
    name: str, restored: Theatre, console: Console, request: pytest.FixtureRequest
) -> None:
    look(
        name,
        RESTORE_SCREENS[name],
        restored,
        console,
        keep=request.config.getoption("--screenshots"),
    )


def look(name: str, screen: Screen, theatre: Theatre, console: Console, *, keep: bool) -> None:
    """Open the screen and check it at each width, in both schemes."""
    console.lines.clear()
    page = screen.way(theatre)
    faults: list[str] = []
    if screen.runs_scripts:
        page.evaluate(AXE)
    for scheme in SCHEMES:
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        for width in (DESK, PHONE):
            page.set_viewport_size({"width": width, "height": HEIGHTS[width]})
            if keep:
                page.screenshot(
                    path=PICTURES / f"{name}-{width}-{scheme}.png", full_page=screen.whole
                )
        if screen.runs_scripts:
            faults += [f"{scheme}: {fault}" for fault in violations(page, scheme)]
    faults += [
        f"scrolls sideways at {width} px: {wide}"
        for width in (360, PHONE)
        if (wide := overflow(page, width))
    ]
    page.set_viewport_size({"width": DESK, "height": HEIGHTS[DESK]})
    assert not faults + console.unexpected(screen)


def violations(page: Page, scheme: str) -> list[str]:
    """What axe finds, one line per element."""
    found = page.evaluate("async rules => (await axe.run(rules)).violations", RULES[scheme])
    return [
        f"{each['id']} {node['target']} {node['failureSummary']}"
        for each in found
        for node in each["nodes"]
    ]


def overflow(page: Page, width: int) -> list[str]:
    """The innermost elements beyond the window's right edge, if it scrolls horizontally at all."""
    page.set_viewport_size({"width": width, "height": HEIGHTS[width]})
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
    return found
