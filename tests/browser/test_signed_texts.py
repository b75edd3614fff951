"""A text to sign is wholly visible above its button, whatever it quotes and however small the
screen.

The texts are those of `tests/browser/hostile_stage.py`.
"""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser import steps
from tests.browser.backstage import BrowserRegistry
from tests.browser.conftest import ALICE, Device
from tests.browser.hostile_stage import REASONS

pytestmark = [pytest.mark.browser, pytest.mark.flow]
SCREENS = [(320, 568), (390, 844), (1280, 800), (1440, 900)]
APPROVALS = [f"approval-{name}" for name in REASONS] + ["approval-long"]
SIGNED = [*APPROVALS, "claim", "confirmation"]
OTHERS = [
    "inbox",
    "agents",
    "agent",
    "activity",
    "ending",
    "ending-grant",
    "ending-many",
    "ending-provider",
]
TEXTS = {"claim": ["sign-claim"], "confirmation": ["sign-confirm", "sign-deny"]}
# For each text to sign: any ancestor that could hide part of it, and the order of text and button.
HIDES = """() => {
  const found = [];
  const texts = [...document.querySelectorAll('.signed-text')];
  if (!texts.length) found.push('no text');
  for (const text of texts) {
    for (const each of [text, ...text.querySelectorAll('*')])
      if (each.scrollHeight > each.clientHeight + 1 && each.clientHeight)
        found.push(`cut off: ${each.tagName}`);
    for (let each = text; each !== document.documentElement; each = each.parentElement) {
      const style = getComputedStyle(each), box = each.getBoundingClientRect();
      if (style.overflow !== 'visible') found.push(`overflow: ${each.tagName}.${each.className}`);
      if (each.matches('details, dialog, [hidden]')) found.push(`folded: ${each.tagName}`);
      const drawn = style.visibility === 'visible' && style.opacity === '1';
      if (!drawn || style.clipPath !== 'none' || !box.height)
        found.push(`unseen: ${each.tagName}`);
    }
    const button = document.querySelector(`[data-signs="${text.id}"]`);
    if (!(text.compareDocumentPosition(button) & Node.DOCUMENT_POSITION_FOLLOWING))
      found.push('after its button');
    if (parseFloat(getComputedStyle(text).fontSize) < 14) found.push('too small');
  }
  return found;
}"""
# Glyphs drawn beyond the window, or over the line above or below: no foreign text may exceed its
# box.
OUTSIDE = """() => [...document.querySelectorAll('main *')].filter((each) => {
  const box = each.getBoundingClientRect();
  return box.width && (box.right > innerWidth + 1 || box.left < -1);
}).map((each) => each.outerHTML.slice(0, 120))"""


@pytest.fixture
def alice(desk: Device) -> Page:
    return desk.page


@pytest.fixture(scope="module")
def paths(desk: Device, registry: BrowserRegistry) -> dict[str, str]:
    assert desk.page
    found = registry.stage("set_up_hostile", ALICE)
    return {
        name: registry.url + path if path.startswith("/") else path for name, path in found.items()
    }


def opened(page: Page, url: str, screen: tuple[int, int]) -> Page:
    page.set_viewport_size({"width": screen[0], "height": screen[1]})
    page.goto(url)
    return page


def on_each_screen(page: Page, url: str) -> Iterator[Page]:
    """Once loaded, a page follows the size of its window by style alone."""
    opened(page, url, SCREENS[0])
    for width, height in SCREENS:
        page.set_viewport_size({"width": width, "height": height})
        yield page


@pytest.mark.parametrize("where", SIGNED)
def test_AP_22_nothing_of_what_is_signed_is_hidden(
    alice: Page, paths: dict[str, str], where: str
) -> None:
    for page in on_each_screen(alice, paths[where]):
        assert page.evaluate(HIDES) == []
    ids = alice.eval_on_selector_all(".signed-text", "texts => texts.map(text => text.id)")
    assert ids == TEXTS.get(where, ["sign-approve", "sign-deny"])


@pytest.mark.parametrize("where", [*SIGNED, *OTHERS])
def test_AP_22_no_text_of_a_stranger_is_wider_than_the_window(
    alice: Page, paths: dict[str, str], where: str
) -> None:
    for page in on_each_screen(alice, paths[where]):
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.evaluate(OUTSIDE) == []


@pytest.mark.parametrize("where", SIGNED)
def test_AP_22_requested_permissions_come_before_the_agents_words(
    alice: Page, paths: dict[str, str], where: str
) -> None:
    page = opened(alice, paths[where], (320, 568))
    # On the approval page the text to sign is what names the permissions.
    asked, after = {
        "claim": ("#kinds-title", ".signed-text >> nth=0"),
        "confirmation": (".act", ".signed-text >> nth=0"),
    }.get(where, ("#sign-approve", "#sign-deny"))
    places = [page.locator(selector).bounding_box() for selector in (asked, after)]
    assert places[0]
    assert places[1]
    assert places[0]["y"] < places[1]["y"]
    words = page.locator(".words")
    if words.count():
        box = words.bounding_box()
        assert box
        assert places[0]["y"] < box["y"]


@pytest.mark.parametrize("screen", SCREENS, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("where", ["approval-long", "claim", "confirmation"])
def test_AP_22_a_button_works_once_its_whole_text_was_on_screen(
    alice: Page, paths: dict[str, str], where: str, screen: tuple[int, int]
) -> None:
    page = opened(alice, paths[where], screen)
    button = page.locator("button[data-signs]").first
    expect(button).to_be_disabled()
    text = page.locator(".signed-text").first
    height = text.evaluate("text => text.getBoundingClientRect().height")
    if height > screen[1]:
        # Jump to the end: the part in between was never on screen.
        text.evaluate(
            "text => scrollTo(0, text.getBoundingClientRect().bottom + scrollY - innerHeight / 2)"
        )
        page.evaluate("() => new Promise(requestAnimationFrame)")
        expect(button).to_be_disabled()
        page.evaluate("scrollTo(0, 0)")
    steps.read(page)
    expect(button).to_be_enabled()
    expect(page.locator(".unread:visible")).to_have_count(0)


def test_AP_22_a_button_without_passkeys_or_scripts_never_works(
    chromium: Browser, alice: Page, paths: dict[str, str]
) -> None:
    context = chromium.new_context(
        java_script_enabled=False, storage_state=alice.context.storage_state()
    )
    context.set_default_timeout(steps.PATIENCE)
    page = opened(context.new_page(), paths["claim"], (1440, 900))
    assert page.locator("button[data-signs]").all()
    for button in page.locator("button[data-signs]").all():
        assert button.is_disabled()
    context.close()


def test_AP_22_by_keyboard_the_end_of_the_text_comes_before_the_button(
    alice: Page, paths: dict[str, str]
) -> None:
    page = opened(alice, paths["claim"], (320, 568))
    button = page.get_by_role("button", name="Claim agent")
    end = page.locator("#sign-claim-end")
    for _ in range(40):
        expect(button).to_be_disabled()
        page.keyboard.press("Tab")
        if end.evaluate("end => end === document.activeElement"):
            break
    expect(end).to_be_focused()
    expect(end).to_be_in_viewport()
    expect(button).to_be_enabled()
    page.keyboard.press("Tab")
    expect(page.get_by_role("textbox", name="Claim code")).to_be_focused()
    page.keyboard.press("Tab")
    expect(button).to_be_focused()


def test_AP_22_a_click_on_the_end_is_not_reading(alice: Page, paths: dict[str, str]) -> None:
    page = opened(alice, paths["approval-long"], (320, 568))
    button = page.locator("button[data-signs]").first
    page.locator("#sign-approve-end").evaluate(
        "end => scrollTo(0, end.getBoundingClientRect().top + scrollY - 100)"
    )
    page.locator("#sign-approve-end").click()
    expect(button).to_be_disabled()


def test_SA_3_a_text_that_changes_is_read_and_signed_again(
    alice: Page, paths: dict[str, str]
) -> None:
    page = opened(alice, paths["approval-long"], (320, 568))
    steps.read(page)
    button = page.locator("button[data-signs]").first
    expect(button).to_be_enabled()
    page.get_by_role("spinbutton", name="Uses in all").fill("3")
    expect(page.locator("#sign-approve")).to_contain_text("At most 3 uses in all.")
    expect(button).to_be_disabled()
    steps.read(page)
    expect(button).to_be_enabled()


def test_AP_22_the_second_step_shows_the_whole_of_what_it_names(
    alice: Page, paths: dict[str, str]
) -> None:
    page = opened(alice, paths["approval-wide"], (320, 568))
    steps.read(page)
    page.get_by_role("button", name="Approve with passkey").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    expect(dialog.get_by_role("heading")).to_be_in_viewport()
    sizes = dialog.evaluate(
        "d => [d.scrollHeight <= d.clientHeight, getComputedStyle(d).overflow, "
        "document.documentElement.scrollWidth]"
    )
    assert sizes == [True, "visible", 320]
    dialog.get_by_role("button", name="Go back").click()
    expect(dialog).to_be_hidden()


def test_AP_2_an_administrator_reads_the_reason_they_sign(
    alice: Page, paths: dict[str, str]
) -> None:
    page = opened(alice, paths[APPROVALS[0]].replace("/approvals/", "/denials/"), (390, 844))
    steps.read(page)
    reason = page.get_by_role("textbox", name="Reason")
    reason.fill("Ask its “owner”.")
    shown = "Reason given to the agent: “Ask its \\u{201c}owner\\u{201d}.”"
    expect(page.locator("#sign-denial li").last).to_have_text(shown)
    # Set by script instead of typing, so the text has changed when the button is pressed.
    reason.evaluate("field => { field.value = 'Another.' }")
    deny = page.get_by_role("button", name="Deny with passkey")
    steps.read(page)
    deny.click()
    expect(page.get_by_role("alert")).to_contain_text("The text has changed")
    steps.read(page)
    deny.click()
    page.wait_for_url("**/admin/registry/grant/**")
    expect(page.get_by_text("Another.").first).to_be_visible()
