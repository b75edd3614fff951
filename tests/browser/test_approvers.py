"""An administrator sets up who approves, and a colleague decides, in a real browser."""

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.actors import may_pay
from tests.browser import steps
from tests.browser.backstage import BrowserRegistry
from tests.browser.conftest import add_authenticator

pytestmark = [pytest.mark.browser, pytest.mark.flow]
PAY = may_pay("100.00")


def _person(chromium: Browser) -> Page:
    context = chromium.new_context(locale="en-GB", timezone_id="Europe/Berlin")
    context.set_default_timeout(steps.PATIENCE)
    page = context.new_page()
    add_authenticator(page)
    return page


@pytest.fixture
def alice(chromium: Browser, registry: BrowserRegistry) -> Iterator[Page]:
    """The first administrator, who also owns the agent."""
    page = _person(chromium)
    steps.be_invited(page, registry, name="Ada Rules", email="ada@rules.example.org", admin=True)
    yield page
    # Even if the test fails: the agents of other modules ask at the same service.
    registry.stage("end_rules", "ada@rules.example.org")
    page.context.close()


@pytest.fixture
def bob(chromium: Browser, alice: Page, registry: BrowserRegistry) -> Iterator[Page]:
    page = _person(chromium)
    steps.be_invited(page, registry, name="Bob Jones", email="bob.jones@example.org")
    yield page
    page.context.close()


def _create_group(page: Page, name: str, then: str | None = None) -> None:
    if not page.get_by_label("Name of the group").last.is_visible():
        page.get_by_text("Create a group", exact=True).click()
    page.get_by_label("Name of the group").last.fill(name)
    if then:
        page.get_by_label("Then pass on to").last.select_option(label=then)
    steps.follow(page, page.get_by_role("button", name="Create group"))
    _expect_said(page, "Group created")


def _expect_said(page: Page, words: str) -> None:
    expect(page.get_by_role("status").first).to_contain_text(words)


def _change_and_remove_a_group(page: Page) -> None:
    _create_group(page, "Spare")
    group = page.locator("li[id^=group-]", has_text="“Spare”")
    for act, said in (("Save “Spare”", "Group changed"), ("Remove “Spare”", "Group removed")):
        group.locator("summary").click()
        group.get_by_label("Minutes to answer").fill("20")
        steps.follow(page, group.get_by_role("button", name=act))
        _expect_said(page, said)


def _move_a_rule(page: Page, group: str) -> None:
    """A second rule, in front of the first one and behind it again, which then ends."""
    page.get_by_text("Add a rule", exact=True).click()
    page.get_by_label("Name of the rule").fill("Everything")
    page.get_by_label("Group that decides").select_option(label=f"“{group}”")
    steps.follow(page, page.get_by_role("button", name="Add rule"))
    for act in ("Move rule “Everything” up", "Move rule “Everything” down"):
        # The second says what the first said, so only the page that follows tells.
        steps.follow(page, page.get_by_role("button", name=act))
        _expect_said(page, "Order changed.")
    page.get_by_role("button", name="End rule “Everything”").click()
    _expect_said(page, "Rule ended")


def _fill_absence(page: Page) -> None:
    page.get_by_label("Away from").fill("2126-08-01T09:00")
    page.get_by_label("Away until").fill("2126-08-14T18:00")


def test_an_administrator_sets_up_approvers_and_a_colleague_decides(
    alice: Page, bob: Page, registry: BrowserRegistry
) -> None:
    alice.goto(f"{registry.url}/admin/")
    steps.follow(alice, alice.get_by_role("link", name="Choose who approves"))
    _change_and_remove_a_group(alice)
    _create_group(alice, "Directors")
    _create_group(alice, "Finance", then="“Directors”")
    member = alice.get_by_label("New member of “Finance”")
    member.select_option(label="“Bob Jones” bob.jones@example.org")
    alice.get_by_role("button", name="Add member to “Finance”").click()
    expect(alice.get_by_role("button", name="Remove “Bob Jones” from “Finance”")).to_be_visible()
    alice.get_by_text("Add a rule", exact=True).click()
    alice.get_by_label("Name of the rule").fill("Payments over €50")
    alice.get_by_label("Payments of more than").fill("50")
    alice.get_by_label("Group that decides").select_option(label="“Finance”")
    steps.follow(alice, alice.get_by_role("button", name="Add rule"))
    expect(alice.get_by_text("Payments of more than €50.00 at any service")).to_be_visible()
    _move_a_rule(alice, "Directors")
    # Who would decide now?
    alice.get_by_label("What").first.select_option(label="Requests to pay")
    alice.get_by_label("Largest payment").fill("60.00")
    alice.get_by_role("button", name="Show").click()
    expect(alice.locator("#preview")).to_contain_text("These people may decide: “Bob Jones”.")
    # The request: Alice sees who decides, and Bob decides.
    agent = steps.Agent(registry)
    asked = agent.request("demo-service", [PAY])
    steps.claim(alice, str(asked["approval_url"]), str(asked["claim_code"]))
    expect(alice.get_by_role("heading", name="Others decide on this")).to_be_visible()
    expect(alice.get_by_role("button", name="Approve with passkey")).to_have_count(0)
    bob.goto(f"{registry.url}/approvals/")
    expect(bob.get_by_text(re.compile("^For “Ada Rules”"))).to_be_visible()
    bob.locator(f'a.button[href="/approvals/{asked["grant_id"]}/"]').click()
    expect(bob.get_by_role("heading", name="You decide for someone else")).to_be_visible()
    steps.approve(bob)
    assert agent.status(str(asked["grant_id"]))["status"] == "approved"
    bob.get_by_role("link", name="Receipt").click()
    expect(bob.get_by_text("“Payments over €50”").first).to_be_visible()
    alice.reload()
    expect(alice.get_by_text(re.compile("“Bob Jones” approved this by the rule"))).to_be_visible()
    expect(alice.get_by_role("link", name="Revoke grant")).to_be_visible()
    # An absence with a deputy, one's own, a member who goes, and what ends or changes.
    alice.goto(f"{registry.url}/approvers/")
    alice.get_by_text("Add an absence", exact=True).click()
    alice.get_by_label("Who is away").select_option(label="“Bob Jones” bob.jones@example.org")
    alice.get_by_label("Deputy").select_option(label="“Ada Rules” ada@rules.example.org")
    _fill_absence(alice)
    alice.get_by_role("button", name="Save absence").click()
    expect(alice.get_by_text("Deputy: “Ada Rules”")).to_be_visible()
    steps.follow(alice, alice.get_by_role("button", name="Remove the absence of “Bob Jones”"))
    expect(alice.get_by_text("Deputy: “Ada Rules”")).to_have_count(0)
    bob.goto(f"{registry.url}/settings/")
    _fill_absence(bob)
    bob.get_by_role("button", name="Add absence").click()
    _expect_said(bob, "Absence saved.")
    bob.get_by_role("button", name="Remove the absence").click()
    _expect_said(bob, "Absence removed")
    alice.get_by_role("button", name="Remove “Bob Jones” from “Finance”").click()
    _expect_said(alice, "Member removed")
    alice.get_by_role("button", name="End rule “Payments over €50”").click()
    expect(alice.get_by_text("No rule yet")).to_be_visible()


def test_a_deputy_decides_and_after_half_an_hour_the_next_group(
    chromium: Browser, registry: BrowserRegistry
) -> None:
    owner, away, deputy, night = (_person(chromium) for _ in range(4))
    names = {"Olga Owner": owner, "Ann Away": away, "Dora Deputy": deputy, "Nina Night": night}
    emails = [f"{name.split()[0].lower()}@on-call.example.org" for name in names]
    for (name, page), email in zip(names.items(), emails, strict=True):
        steps.be_invited(page, registry, name=name, email=email)
    service = registry.stage("on_call", " ".join(emails[1:]))["service"]
    agent = steps.Agent(registry)
    first = agent.request(service, [{"type": "read", "resource": "calendar"}])
    steps.claim(owner, str(first["approval_url"]), str(first["claim_code"]))
    second = agent.request(service, [{"type": "read", "resource": "calendar/work"}])
    for page, asked in ((deputy, first), (night, second)):
        grant, path = str(asked["grant_id"]), f"{registry.url}/approvals/{asked['grant_id']}/"
        if page is night:
            night.goto(path)
            expect(night.get_by_role("button", name="Approve with passkey")).to_have_count(0)
            registry.stage("half_an_hour_passes", grant)
        away.goto(path)
        expect(away.get_by_role("button", name="Approve with passkey")).to_have_count(0)
        page.goto(registry.url + "/approvals/")
        page.locator(f'a.button[href="/approvals/{grant}/"]').click()
        expect(page.get_by_role("heading", name="You decide for someone else")).to_be_visible()
        steps.approve(page, second_step=False)
        assert agent.status(grant)["status"] == "approved"
    for page in names.values():
        page.context.close()
