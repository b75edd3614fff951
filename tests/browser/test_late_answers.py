"""The server's answers about choices may arrive in another order than the questions were asked."""

import pytest
from playwright.sync_api import Page, Route, expect

from tests.actors import may_pay
from tests.browser import steps
from tests.browser.backstage import BrowserRegistry
from tests.browser.conftest import Device

pytestmark = [pytest.mark.browser, pytest.mark.flow]
PAY = may_pay("100.00")


@pytest.fixture
def alice(desk: Device, registry: BrowserRegistry) -> Page:
    asked = steps.Agent(registry).request("demo-service", [PAY])
    steps.claim(desk.page, str(asked["approval_url"]), str(asked["claim_code"]))
    return desk.page


@pytest.mark.parametrize(
    ("question", "field", "text", "typed", "shown"),
    [
        ("review", "Maximum amount", "#sign-approve", ["40.00", "30.00"], ["€40.00", "€30.00"]),
        ("review-denial", "Reason", "#sign-deny", ["Too late", "Too early"], None),
    ],
    ids=["approve", "deny"],
)
def test_AP_1_a_late_answer_does_not_replace_that_of_newer_choices(
    alice: Page, question: str, field: str, text: str, typed: list[str], shown: list[str] | None
) -> None:
    held: list[Route] = []

    def hold_the_first(route: Route) -> None:
        if held:
            route.continue_()
        else:
            held.append(route)

    older, newer = shown or typed
    alice.route(f"**/{question}", hold_the_first)
    box, signed = alice.get_by_role("textbox", name=field), alice.locator(text)
    with alice.expect_request(f"**/{question}"):
        box.fill(typed[0])
    box.fill(typed[1])
    expect(signed).to_contain_text(newer)
    with alice.expect_response(f"**/{question}"):
        held[0].continue_()
    # Two frames later it would be shown.
    alice.evaluate(
        "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
    )
    expect(signed).to_contain_text(newer)
    expect(signed).not_to_contain_text(older)
    alice.unroute(f"**/{question}")
