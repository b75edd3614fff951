"""An open page shows how much waits, without a reload, and asks nothing when nobody looks."""

import os
import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, Request, expect

from tests.browser import steps
from tests.browser.backstage import BrowserRegistry
from tests.browser.conftest import add_authenticator

pytestmark = [pytest.mark.browser, pytest.mark.flow]
READ = {"type": "read", "resource": "calendar"}
# A page asks every 5 s. In ms.
ONE_TURN, TWO_TURNS = 5_000, 11_000


@pytest.fixture
def alice(chromium: Browser, registry: BrowserRegistry) -> Iterator[Page]:
    """An administrator of their own, signed in, on a page that is not the inbox."""
    context = chromium.new_context(locale="en-GB", timezone_id="Europe/Berlin")
    context.set_default_timeout(steps.PATIENCE)
    page = context.new_page()
    add_authenticator(page)
    name = f"badge-{os.urandom(4).hex()}@example.org"
    steps.be_invited(page, registry, name="Bea Badge", email=name)
    # Its time runs as always, but a test can also make it pass.
    page.clock.install()
    page.goto(registry.url + "/agents/")
    yield page
    context.close()


def claimed(page: Page, agent: steps.Agent) -> None:
    """The agent belongs to the person of the page; one request of it waits."""
    asked = agent.request("demo-service", [READ])
    steps.claim(page, str(asked["approval_url"]), str(asked["claim_code"]))


def asked_by(page: Page) -> list[str]:
    """The addresses that the page asks for from now on."""
    found: list[str] = []

    def heard(request: Request) -> None:
        found.append(request.url)

    page.on("request", heard)
    return found


def test_badge_and_title_follow_what_waits(alice: Page, registry: BrowserRegistry) -> None:
    agent = steps.Agent(registry)
    claimed(alice, agent)
    alice.goto(registry.url + "/agents/")
    badge = alice.locator("#waits")
    expect(badge).to_have_text("1")
    expect(alice).to_have_title(re.compile(r"^\(1\) Agents"))
    agent.request("demo-service", [{"type": "read", "resource": "calendar/work"}])
    alice.clock.run_for(ONE_TURN)
    expect(badge).to_have_text("2")
    expect(alice).to_have_title(re.compile(r"^\(2\) Agents"))
    other = alice.context.new_page()
    other.goto(registry.url + "/approvals/")
    expect(other.get_by_role("heading", level=1)).to_have_text("2 decisions wait for you")
    third = agent.request("demo-service", [{"type": "read", "resource": "calendar/home"}])
    other.clock.run_for(ONE_TURN)
    expect(other.locator(f'a.button[href="/approvals/{third["grant_id"]}/"]')).to_be_visible()
    expect(other.get_by_role("heading", level=1)).to_have_text("3 decisions wait for you")
    expect(other).to_have_title(re.compile(r"^\(3\) Inbox"))


def test_a_hidden_tab_asks_nothing_and_asks_when_it_is_shown(
    alice: Page, registry: BrowserRegistry
) -> None:
    show = (
        "state => { Object.defineProperty(document, 'visibilityState', "
        "{configurable: true, get: () => state}); "
        "document.dispatchEvent(new Event('visibilitychange')); }"
    )
    alice.evaluate(show, "hidden")
    asked = asked_by(alice)
    alice.clock.run_for(TWO_TURNS)
    assert asked == []
    with alice.expect_request("**/approvals/waiting"):
        alice.evaluate(show, "visible")


def test_a_page_that_is_signed_out_elsewhere_stops_asking_and_keeps_its_text(
    alice: Page, registry: BrowserRegistry
) -> None:
    claimed(alice, steps.Agent(registry))
    alice.goto(registry.url + "/settings/")
    expect(alice).to_have_title(re.compile(r"^\(1\) "))
    alice.get_by_text("Add a webhook").click()
    address = alice.get_by_role("textbox", name="Address")
    address.fill("https://hooks.example.org/typed")
    other = alice.context.new_page()
    other.goto(registry.url + "/agents/")
    steps.sign_out(other)
    other.close()
    expect(alice.locator("#waits")).to_be_hidden()
    expect(alice).to_have_title(re.compile(r"^Settings"))
    asked = asked_by(alice)
    alice.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    alice.clock.run_for(TWO_TURNS)
    assert asked == []
    expect(address).to_have_value("https://hooks.example.org/typed")
