"""The pages in German: no axe violation, nothing beyond 320 px, and the zone of the browser.

German words are long, so what fits in English may not. `--screenshots` keeps the pictures.
"""

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser import steps
from tests.browser.conftest import add_authenticator
from tests.browser.screens import SCREENS, Screen, Theatre, at
from tests.browser.test_screenshots import (
    AXE,
    DESK,
    HEIGHTS,
    PHONE,
    PICTURES,
    SCHEMES,
    Console,
    console,
    enter,
    overflow,
    theatre,
    violations,
)
from tests.live import LiveRegistry

__all__ = ["console", "enter", "theatre"]
pytestmark = [pytest.mark.browser, pytest.mark.flow]
# Those that no step before them changes.
NAMES = (
    "front-signed-out", "sign-in", "claim", "claim-look-alike", "inbox-waiting",
    "approval-many-rows", "approval-look-alike", "approval-expired", "approval-suspended",
    "confirmation-pending", "agents", "agent-active", "agent-revoked", "resume-agent",
    "denial", "ending-human", "ending-keys", "activity-unsigned-log",
    "activity-wrong-filter", "spending", "control-room-log", "settings", "not-found",
    "control-room", "control-room-grants", "control-room-keys", "control-room-make",
)  # fmt: skip
COMPONENTS = {"components": Screen(at("/components/"))}


@pytest.fixture(scope="module")
def german(theatre: Theatre) -> Theatre:
    """Alice and the visitor have chosen German, with the buttons at the foot of the page."""
    for page in (theatre.alice, theatre.visitor):
        theatre.open(page, "/")
        page.get_by_role("button", name="Deutsch").click()
        expect(page.locator("html")).to_have_attribute("lang", "de")
    return theatre


@pytest.mark.parametrize("name", [*NAMES, *COMPONENTS])
def test_screen_in_german(
    name: str,
    german: Theatre,
    console: Console,
    request: pytest.FixtureRequest,
) -> None:
    screen = (SCREENS | COMPONENTS)[name]
    console.lines.clear()
    page = screen.way(german)
    expect(page.locator("html")).to_have_attribute("lang", "de")
    page.evaluate(AXE)
    faults: list[str] = []
    for scheme in SCHEMES:
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        faults += [f"{scheme}: {fault}" for fault in violations(page, scheme)]
        for width in (DESK, PHONE):
            page.set_viewport_size({"width": width, "height": HEIGHTS[width]})
            if request.config.getoption("--screenshots"):
                page.screenshot(path=PICTURES / f"de-{name}-{width}-{scheme}.png", full_page=True)
    faults += [f"scrolls sideways: {wide}" for wide in overflow(page, PHONE)]
    page.set_viewport_size({"width": DESK, "height": HEIGHTS[DESK]})
    assert not faults + console.unexpected(screen)


def test_set_up_takes_zone_and_language_of_the_browser(
    chromium: Browser, sqlite_registry: LiveRegistry
) -> None:
    context = chromium.new_context(locale="de-CH", timezone_id="Pacific/Auckland")
    context.set_default_timeout(10_000)
    page = context.new_page()
    add_authenticator(page)
    page.goto(sqlite_registry.manage("setup_link", "--email", "eva@example.org")["url"])
    page.get_by_role("textbox", name="Ihr Name").fill("Eva")
    page.get_by_role("button", name="Passkey erstellen").click()
    expect(page.get_by_text("Zeiten in der Zeitzone Pacific/Auckland.")).to_be_visible()
    context.close()


def test_a_language_chosen_elsewhere_stops_the_signature_and_keeps_the_fields(
    german: Theatre,
) -> None:
    page = german.open(german.alice, "many")
    page.get_by_role("textbox", name="Höchstbetrag").fill("40,00")
    other = german.alice.context.new_page()
    german.open(other, "/settings/")
    other.get_by_role("button", name="English").click()
    expect(other.locator("html")).to_have_attribute("lang", "en-gb")
    steps.read(page)
    page.get_by_role("button", name="Mit Passkey genehmigen").click()
    expect(page.get_by_role("alert")).to_contain_text("You chose another language")
    expect(page.get_by_role("textbox", name="Höchstbetrag")).to_have_value("40,00")
    other.get_by_role("button", name="Deutsch").click()
    other.close()


def has_motion(page: Page) -> bool:
    """Whether anything on the page moves by itself or on a change."""
    moves: bool = page.evaluate(
        """() => [...document.querySelectorAll('*')].some((each) =>
          ['', '::before', '::after'].some((part) => {
            const style = getComputedStyle(each, part);
            return style.transitionDuration.split(', ').some((time) => parseFloat(time)) ||
              (style.animationName !== 'none' && parseFloat(style.animationDuration));
          }))"""
    )
    return moves


def test_nothing_moves_for_people_who_ask_for_that(german: Theatre) -> None:
    page = german.open(german.alice, "/components/")
    page.emulate_media(reduced_motion="no-preference")
    assert has_motion(page)
    page.emulate_media(reduced_motion="reduce")
    assert not has_motion(page)
