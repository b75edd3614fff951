"""What a user does on the pages, step by step, finding things by role and accessible name."""

import os
import re
import time
from typing import Any

from playwright.sync_api import Locator, Page, expect

from tests.browser.agent import call
from tests.browser.backstage import BrowserRegistry
from tests.live import LiveRegistry

# In ms: only a hang takes longer. On a busy machine a process can stand still for seconds.
PATIENCE = 60_000
expect.set_options(timeout=PATIENCE)


def become_admin(page: Page, registry: LiveRegistry) -> None:
    """Open the one-time link and create the first administrator's passkey; ends signed in."""
    page.goto(registry.manage("setup_link")["url"])
    page.get_by_role("textbox", name="Your name").fill("Alice Martin")
    page.get_by_role("textbox", name="E-mail").fill("alice@example.org")
    page.get_by_role("button", name="Create passkey").click()
    expect(page.get_by_role("link", name="Approvals")).to_be_visible()


def be_invited(
    page: Page, registry: LiveRegistry, *, name: str, email: str, admin: bool = False
) -> None:
    """Open an invitation and create a passkey; ends signed in."""
    more = ("--role", "owner") if admin else ()
    page.goto(registry.manage("setup_link", "--email", email, *more)["url"])
    page.get_by_role("textbox", name="Your name").fill(name)
    page.get_by_role("button", name="Create passkey").click()
    expect(page.get_by_role("link", name="Approvals")).to_be_visible()


def sign_in(page: Page, registry: LiveRegistry) -> None:
    page.goto(registry.url + "/sign-in/")
    page.get_by_role("button", name="Sign in with passkey").click()
    expect(page.get_by_role("link", name="Approvals")).to_be_visible()


def be_signed_in(page: Page, registry: LiveRegistry) -> None:
    page.goto(registry.url + "/agents/")
    if page.get_by_role("button", name="Sign in with passkey").is_visible():
        sign_in(page, registry)


def follow(page: Page, target: Locator) -> None:
    """Click and wait for the next page. A click alone returns before it, so what comes after
    might still look at the old page, or at none.
    """
    with page.expect_navigation():
        target.click()


def sign_out(page: Page) -> None:
    follow(page, page.get_by_role("button", name="Sign out"))
    expect(page.get_by_role("button", name="I'm here")).to_have_count(0)


def read(page: Page) -> None:
    """Scroll through each text to sign, one screen at a time, as a reader does."""
    # What is read before the page's script runs does not count.
    page.wait_for_load_state()
    page.evaluate(
        """async () => {
          for (const text of document.querySelectorAll('.signed-text')) {
            const frame = () => new Promise(requestAnimationFrame);
            const place = () => text.getBoundingClientRect();
            const bar = document.querySelector('.reach')?.offsetHeight ?? 0;
            scrollTo(0, place().top + scrollY - 60);
            const settled = async () => (await frame(), await frame());
            for (await settled(); place().bottom > innerHeight - bar - 20; await settled()) {
              const before = scrollY;
              scrollBy(0, (innerHeight - bar) * 0.7);
              if (scrollY === before) break;
            }
          }
        }"""
    )


def claim(page: Page, url: str, code: str) -> None:
    page.goto(url)
    read(page)
    page.get_by_role("textbox", name="Claim code").fill(code)
    page.get_by_role("button", name="Claim agent").click()
    page.wait_for_url(re.compile(r"[?]claimed=1$"))


def approve(page: Page, *, second_step: bool = True) -> None:
    """Ends on the page that follows: the one before says "Approved" too, just before it goes."""
    read(page)
    press = page.get_by_role("button", name="Approve with passkey")
    if second_step:
        press.click()
        press = page.get_by_role("dialog").get_by_role("button", name="Continue")
    follow(page, press)
    expect(page.get_by_role("status")).to_contain_text("Approved")


def deny(page: Page, reason: str) -> None:
    """Press the button once the text holds the reason and was read; does not wait after it."""
    page.get_by_role("textbox", name="Reason").fill(reason)
    expect(page.locator("#sign-deny")).to_contain_text(reason)
    read(page)
    page.get_by_role("button", name="Deny").click()


def press_twice(page: Page, button: Locator) -> float:
    """Returns the seconds between the two taps, at most."""
    # Not with `tap`, which scrolls before it taps.
    box = button.bounding_box()
    assert box
    began = time.monotonic()
    for pause in (150, 0):
        page.touchscreen.tap(box["x"] + 20, box["y"] + 20)
        page.wait_for_timeout(pause)
    return time.monotonic() - began


def hold_enter(page: Page, button: Locator) -> float:
    """Returns the most seconds between one press and the next."""
    button.focus()
    longest, before = 0.0, time.monotonic()
    for _ in range(20):
        began = time.monotonic()
        page.keyboard.down("Enter")
        longest = max(longest, time.monotonic() - before)
        before = began
        page.wait_for_timeout(50)
    page.keyboard.up("Enter")
    return longest


class Agent:
    """An agent, whose key is in a file: each call is a new client of the SDK."""

    def __init__(self, registry: BrowserRegistry, name: str = "Research Assistant") -> None:
        self.registry, self.name = registry, name
        self.key_file = registry.directory / f"agent-{os.urandom(4).hex()}.json"

    def request(
        self, service_provider: str, capabilities: list[Any], envelope: Any = None, reason: str = ""
    ) -> dict[str, Any]:
        """Ask for a grant; returns ids, links and claim code."""
        return self.run("request", service_provider, capabilities, envelope, reason)

    def status(self, grant_id: str) -> dict[str, Any]:
        return self.run("status", grant_id)

    def run(self, what: str, *arguments: Any) -> dict[str, Any]:
        return call(self.registry.url, self.key_file, self.name, what, *arguments)
