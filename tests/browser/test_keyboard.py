"""Every act by keyboard alone; a dialog traps the focus and returns it.

That it is always seen, test_every_page.py proves.
"""

import re

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.backstage import BrowserRegistry
from tests.browser.conftest import Device

pytestmark = [pytest.mark.browser, pytest.mark.flow]
MOST_STOPS = 90


@pytest.fixture
def alice(desk: Device) -> Page:
    return desk.page


@pytest.fixture
def paths(scenes: dict[str, str]) -> dict[str, str]:
    return scenes


def tab_to(page: Page, target: Locator) -> None:
    """Press Tab until `target` has the focus. Some have none until the page's scripts have run."""
    page.wait_for_load_state()
    for _ in range(MOST_STOPS):
        page.keyboard.press("Tab")
        if target.evaluate("element => element === document.activeElement"):
            return
    raise AssertionError(f"Tab never reaches {target}")


def read_on(page: Page, button: Locator) -> None:
    """Press Enter on the focused button, which shows the rest of its text until all was shown."""
    for _ in range(MOST_STOPS):
        if button.is_enabled():
            return
        page.keyboard.press("Enter")
        page.evaluate("() => new Promise(requestAnimationFrame)")
    raise AssertionError("The text to sign never ends.")


def inside(page: Page) -> bool:
    """Whether the focus is in the dialog or in the browser's own controls around the page."""
    return bool(page.evaluate("!!document.activeElement.closest('dialog, body:focus')")) or bool(
        page.evaluate("document.activeElement === document.body")
    )


def test_approving_takes_no_mouse(alice: Page, paths: dict[str, str]) -> None:
    alice.goto(paths["many"])
    row = alice.get_by_role("checkbox", name=re.compile("quarterly"))
    tab_to(alice, row)
    alice.keyboard.press("Space")
    expect(row).not_to_be_checked()
    amount = alice.get_by_role("textbox", name="Maximum amount")
    tab_to(alice, amount)
    alice.keyboard.type("300.00")
    expect(alice.locator("#sign-approve")).to_contain_text("€300.00 per payment")
    approve = alice.get_by_role("button", name="Approve with passkey")
    tab_to(alice, approve)
    read_on(alice, approve)
    # A held key must not show the rest and sign (reading.js).
    alice.wait_for_timeout(750)
    alice.keyboard.press("Enter")
    dialog = alice.get_by_role("dialog")
    expect(dialog).to_be_visible()
    # The safe choice has the focus first.
    expect(dialog.get_by_role("button", name="Go back")).to_be_focused()
    expect(dialog.get_by_role("button", name="Continue")).to_be_enabled()
    tab_to(alice, dialog.get_by_role("button", name="Continue"))
    alice.keyboard.press("Enter")
    expect(alice.get_by_role("status")).to_contain_text("Approved")


def test_the_dialog_keeps_the_focus_and_gives_it_back(alice: Page, paths: dict[str, str]) -> None:
    alice.goto(paths["to-approve"])
    approve = alice.get_by_role("button", name="Approve with passkey")
    tab_to(alice, approve)
    alice.keyboard.press("Enter")
    dialog = alice.get_by_role("dialog")
    expect(dialog).to_be_visible()
    for key in ("Tab", "Tab", "Tab", "Tab", "Shift+Tab", "Shift+Tab", "Shift+Tab"):
        alice.keyboard.press(key)
        assert inside(alice)
    alice.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(approve).to_be_focused()


def test_denying_confirming_and_revoking_take_no_mouse(alice: Page, paths: dict[str, str]) -> None:
    alice.goto(paths["to-deny"])
    tab_to(alice, alice.get_by_role("textbox", name="Reason"))
    alice.keyboard.type("Not now.")
    expect(alice.locator("#sign-deny")).to_contain_text("“Not now.”")
    tab_to(alice, alice.get_by_role("button", name="Deny"))
    alice.keyboard.press("Enter")
    expect(alice.get_by_role("status")).to_contain_text("Denied")
    alice.goto(paths["confirmation-pending"])
    tab_to(alice, alice.get_by_role("button", name="Confirm with passkey"))
    alice.keyboard.press("Enter")
    expect(alice.get_by_role("status")).to_contain_text("Confirmed")
    alice.goto(paths["agent-suspended"])
    tab_to(alice, alice.get_by_role("link", name="Revoke agent"))
    alice.keyboard.press("Enter")
    typed = alice.get_by_role("textbox", name="To confirm, type")
    expect(typed).to_be_visible()
    tab_to(alice, typed)
    alice.keyboard.type("Newsletter Helper")
    tab_to(alice, alice.get_by_role("button", name="Revoke for good"))
    alice.keyboard.press("Enter")
    expect(alice.get_by_role("status")).to_contain_text("Revoked")


def test_the_skip_link_comes_first_and_leads_to_the_content(
    alice: Page, registry: BrowserRegistry
) -> None:
    alice.goto(registry.url + "/agents/")
    alice.keyboard.press("Tab")
    expect(alice.get_by_role("link", name="Skip to content")).to_be_focused()
    alice.keyboard.press("Enter")
    expect(alice.get_by_role("main")).to_be_focused()
