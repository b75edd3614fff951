"""The approval page on a phone: what is read, reached, typed, kept and signed."""

import base64
import json
import re
import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from playwright.sync_api import Browser, Page, expect

from approvals.sessions import stored_key
from tests.actors import may_pay
from tests.browser import steps
from tests.browser.backstage import BrowserRegistry
from tests.browser.conftest import add_authenticator

pytestmark = [pytest.mark.browser, pytest.mark.flow]
PHONE = {"width": 390, "height": 844}
READ = {"type": "read", "resource": "calendar/work"}
PAY = may_pay("100.00")
FILES = {
    "type": "read",
    "resource": "files/reports",
    "constraints": {"size": {"max": 1000}, "kind": {"in": ["draft", "final"]}},
}
# Two presses are one double tap, or one held key, only within this time (`SETTLE` in reading.js).
# A machine that stands still for longer between them makes them two, so the test presses again.
SETTLE_SECONDS, TRIES = 0.7, 10
# Longer than a screen.
LONG = [FILES | {"resource": f"files/reports/{n}"} for n in range(12)]
# Fields whose top is under the bar, and focused elements that it hides wholly (WCAG 2.2, 2.4.11).
OBSCURED = """() => {
  const each = document.activeElement, bar = document.querySelector('.reach');
  if (each === document.body || bar.contains(each)) return null;
  const box = each.getBoundingClientRect(), { top, bottom } = bar.getBoundingClientRect();
  return box.top >= top - 1 && box.top < bottom ? each.outerHTML.slice(0, 90) : null;
}"""
SIGNED_LINES = """() => [...document.querySelectorAll('#sign-approve > li')]
  .filter((each) => !each.querySelector('input:not(:checked)'))
  .map((each) => each.querySelector('.line').textContent)"""


@pytest.fixture(scope="module")
def phone(chromium: Browser, registry: BrowserRegistry) -> Iterator[Page]:
    context = chromium.new_context(
        locale="en-GB",
        timezone_id="Europe/Berlin",
        viewport=PHONE,  # type: ignore[arg-type]
        has_touch=True,
        is_mobile=True,
    )
    context.set_default_timeout(steps.PATIENCE)
    page = context.new_page()
    add_authenticator(page)
    steps.be_invited(page, registry, name="Alice", email="alice.phone@example.org")
    yield page
    context.close()


@pytest.fixture
def alice(phone: Page) -> Page:
    """At the size of a phone, whatever a test before it left."""
    phone.set_viewport_size(PHONE)  # type: ignore[arg-type]
    return phone


@pytest.fixture
def signed_in_afterwards(alice: Page, registry: BrowserRegistry) -> Iterator[None]:
    """Alice is signed in for the next test, even if this one fails while she is signed out."""
    yield
    steps.be_signed_in(alice, registry)


@pytest.fixture
def agent(alice: Page, registry: BrowserRegistry) -> steps.Agent:
    return steps.Agent(registry)


def open_request(page: Page, agent: steps.Agent, capabilities: list[Any], **more: Any) -> str:
    """The agent asks for a grant and Alice claims the agent; ends on the page of the request."""
    asked = agent.request("demo-service", capabilities, **more)
    steps.claim(page, str(asked["approval_url"]), str(asked["claim_code"]))
    # As from a notification, without the word that the agent was claimed.
    page.goto(f"{agent.registry.url}/approvals/{asked['grant_id']}/")
    return str(asked["grant_id"])


def posts_of(page: Page) -> list[str]:
    """The last parts of the addresses that the page asks from now on."""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url.rsplit("/", 1)[1]))
    return asked


def choices_kept(page: Page, grant: str = "") -> list[str]:
    """The names under which the tab keeps what was typed, of one request or of all."""
    found: list[str] = page.evaluate(
        "start => Object.keys(sessionStorage).filter((key) => key.startsWith(start))",
        f"choices {grant}",
    )
    return found


def test_a_short_request_fits_one_screen(alice: Page, registry: BrowserRegistry) -> None:
    # A name of its own, since the page warns of two agents with one name.
    open_request(alice, steps.Agent(registry, "Trip Planner"), [READ])
    expect(alice.get_by_role("button", name="Approve with passkey")).to_be_enabled()
    assert alice.evaluate("scrollY") == 0


def test_both_decisions_on_a_usual_request_take_one_and_a_half_screens(
    alice: Page, registry: BrowserRegistry
) -> None:
    limits = {
        "max_requests_per_minute": 30,
        "confirm_above": {"value": "50.00", "currency": "EUR"},
        "budgets": [{"value": "500.00", "currency": "EUR", "period": "day", "zone": "UTC"}],
    }
    open_request(alice, steps.Agent(registry, "Invoice Clerk"), [READ, PAY], envelope=limits)
    steps.read(alice)
    for name in ("Approve with passkey", "Deny"):
        expect(alice.get_by_role("button", name=name)).to_be_enabled()
    height = alice.evaluate(
        "() => document.getElementById('sign-deny-end').getBoundingClientRect().bottom + scrollY"
        " + document.querySelector('.reach').offsetHeight"
    )
    assert height <= 1.5 * PHONE["height"]


def test_AP_22_what_the_bar_covers_is_not_read(alice: Page, agent: steps.Agent) -> None:
    open_request(alice, agent, [READ])
    approve = alice.get_by_role("button", name="Approve with passkey")
    bottom, bar = alice.evaluate(
        "() => [document.getElementById('sign-approve').getBoundingClientRect().bottom + scrollY,"
        " document.querySelector('.reach').offsetHeight]"
    )
    # The last line is in the window, but under the bar.
    alice.set_viewport_size({"width": 390, "height": int(bottom + bar / 2)})
    alice.reload()
    expect(approve).to_be_disabled()
    alice.set_viewport_size({"width": 390, "height": int(bottom + 2 * bar)})
    expect(approve).to_be_enabled()
    alice.set_viewport_size(PHONE)  # type: ignore[arg-type]


def test_AP_22_an_unread_button_shows_its_text_and_signs_nothing(
    alice: Page, agent: steps.Agent
) -> None:
    grant = open_request(alice, agent, LONG)
    deny = alice.get_by_role("button", name="Deny")
    expect(deny).to_have_attribute("aria-disabled", "true")
    deny.tap(force=True)
    expect(alice.locator("#sign-deny")).to_be_in_viewport(ratio=1)
    expect(alice.get_by_role("textbox", name="Reason")).to_be_in_viewport()
    assert agent.status(grant)["status"] == "pending"
    alice.wait_for_timeout(750)  # Before that, it could be the second tap of a double tap.
    deny.tap()
    expect(alice.get_by_role("status")).to_contain_text("Denied")
    assert agent.status(grant)["status"] == "denied"


@pytest.mark.parametrize("twice", ["double tap", "held Enter"])
def test_AP_22_one_press_does_not_both_show_and_sign(
    alice: Page, registry: BrowserRegistry, twice: str
) -> None:
    press = {"double tap": steps.press_twice, "held Enter": steps.hold_enter}[twice]
    for _ in range(TRIES):
        agent = steps.Agent(registry)
        grant = open_request(alice, agent, LONG)
        deny = alice.get_by_role("button", name="Deny")
        expect(deny).to_have_attribute("aria-disabled", "true")
        asked = posts_of(alice)
        if press(alice, deny) < SETTLE_SECONDS:
            break
    else:
        raise AssertionError("no two presses came within the time of a double tap")
    expect(alice.locator("#sign-deny")).to_be_in_viewport(ratio=1)
    alice.wait_for_timeout(300)
    assert "statement" not in asked
    assert agent.status(grant)["status"] == "pending"


def test_a_double_tap_does_not_take_the_second_step(alice: Page, agent: steps.Agent) -> None:
    open_request(alice, agent, [PAY])
    alice.evaluate(
        """() => {
          const dialog = document.getElementById('second-step');
          const go = dialog.querySelector('[value=continue]');
          new MutationObserver(() => { window.atFirst ??= go.disabled; })
            .observe(dialog, { attributes: true, attributeFilter: ['open'] });
        }"""
    )
    steps.read(alice)
    alice.get_by_role("button", name="Approve with passkey").tap()
    go = alice.get_by_role("button", name="Continue")
    expect(go).to_be_enabled()
    assert alice.evaluate("atFirst") is True
    go.tap()
    expect(alice.get_by_role("status")).to_contain_text("Approved")


def test_AP_22_a_turned_phone_has_read_no_more_than_before(alice: Page, agent: steps.Agent) -> None:
    open_request(alice, agent, LONG)
    alice.set_viewport_size({"width": 320, "height": 568})
    alice.reload()
    # A page hears of its scrolling with the next frame, so each step waits for two.
    share = """async share => {
      const box = document.getElementById('sign-approve').getBoundingClientRect();
      const bar = document.querySelector('.reach').getBoundingClientRect();
      scrollTo(0, scrollY + box.top + share * box.height - bar.top);
      for (let frames = 0; frames < 2; frames++) await new Promise(requestAnimationFrame);
    }"""
    for step in range(1, 7):
        alice.evaluate(share, step / 10)
    approve = alice.get_by_role("button", name="Approve with passkey")
    expect(approve).to_be_disabled()
    alice.set_viewport_size({"width": 1000, "height": 568})
    alice.wait_for_function("innerWidth >= 1000")
    alice.wait_for_timeout(300)
    expect(approve).to_be_disabled()
    steps.read(alice)
    expect(approve).to_be_enabled()
    alice.set_viewport_size(PHONE)  # type: ignore[arg-type]


def test_AP_22_a_link_to_the_end_of_the_text_reads_nothing(alice: Page, agent: steps.Agent) -> None:
    """An agent gives its person the link, and may add a fragment to it."""
    grant = open_request(alice, agent, LONG)
    approve = alice.get_by_role("button", name="Approve with passkey")
    end = alice.locator("#sign-approve-end")
    url = f"{agent.registry.url}/approvals/{grant}/"
    alice.goto(f"{url}#sign-approve-end")
    expect(end).to_be_focused()
    alice.wait_for_timeout(300)
    expect(approve).to_be_disabled()
    # Nor does Tab from the last lines of the text.
    alice.goto("about:blank")
    alice.goto(f"{url}#permission-11")
    expect(alice.locator("#permission-11")).to_be_focused()
    alice.keyboard.press("Tab")
    expect(end).to_be_focused()
    expect(approve).to_be_disabled()
    # From the top of the page it does, past each permission.
    alice.goto("about:blank")
    alice.goto(f"{url}#main")
    for _ in range(len(LONG) + 3):
        alice.keyboard.press("Tab")
        if end.evaluate("end => end === document.activeElement"):
            break
    expect(end).to_be_focused()
    expect(approve).to_be_enabled()


@pytest.mark.parametrize("width", [320, 390, 768, 1440])
def test_both_decisions_stay_in_reach_and_cover_no_focus(
    alice: Page, agent: steps.Agent, width: int
) -> None:
    open_request(alice, agent, [READ, PAY, FILES])
    alice.set_viewport_size({"width": width, "height": 640})
    alice.reload()
    for fold in alice.locator("details.allow-less").all():
        fold.evaluate("fold => { fold.open = true }")
    for share in (0, 0.3, 0.7, 1):
        alice.evaluate("share => scrollTo(0, share * (document.body.scrollHeight - 900))", share)
        for name in ("Approve with passkey", "Deny"):
            expect(alice.get_by_role("button", name=name)).to_be_in_viewport(ratio=1)
    hidden = []
    alice.evaluate("scrollTo(0, 0)")
    for _ in range(80):
        alice.keyboard.press("Tab")
        hidden.append(alice.evaluate(OBSCURED))
    assert not any(hidden)
    alice.set_viewport_size(PHONE)  # type: ignore[arg-type]


def test_AP_1_the_statement_on_the_page_is_what_is_signed(alice: Page, agent: steps.Agent) -> None:
    began = datetime.now(ZoneInfo("Europe/Berlin"))
    grant = open_request(alice, agent, [READ, PAY, FILES])
    alice.get_by_role("checkbox", name=re.compile("calendar")).uncheck()
    alice.get_by_text("Read “files/reports”", exact=True).click()
    alice.get_by_role("textbox", name="Only below “files/reports/”").fill("2026")
    alice.get_by_role("textbox", name="size is at most").fill("10")
    alice.get_by_role("checkbox", name="“draft”", exact=True).uncheck()
    alice.get_by_role("textbox", name="Total budget").fill("80")
    alice.get_by_text("Hours", exact=True).click()
    alice.get_by_role("checkbox", name="Sunday").uncheck()
    alice.get_by_label("To", exact=True).fill("18:00")
    alice.get_by_role("checkbox", name=re.compile("Only while my")).check()
    alice.get_by_role("spinbutton", name="Valid for").fill("6")
    alice.get_by_role("combobox", name="Days or hours").select_option("hours")
    expect(alice.locator("#changes li")).to_have_count(8)
    expect(alice.locator("#totals")).to_contain_text("€80.00")
    # Six days are the eighth change too: the count alone may be that of the unit before.
    # The six hours begin when the page was made: midnight may lie between that and now.
    ends = (each + timedelta(hours=6) for each in (began, datetime.now(began.tzinfo)))
    days = "|".join(f"{each.day} {each:%B %Y}" for each in ends)
    expect(alice.locator("#sign-approve")).to_contain_text(re.compile(f"This ends on ({days})"))
    lines = alice.evaluate(SIGNED_LINES)
    steps.approve(alice)
    url = f"{agent.registry.url}/v1/grants/{grant}/receipt"
    compact = alice.request.get(url).json()["receipt"]
    payload = compact.split(".")[1]
    body = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    assert body["consent_text"].split("\n") == lines
    files, pay = body["statement"]["capabilities"][::-1]
    assert files["resource"] == "files/reports/2026"
    assert files["constraints"] == {"size": {"max": 10}, "kind": {"in": ["final"]}}
    assert pay["type"] == "transact"
    assert body["statement"]["envelope"]["requires_human_online"] is True


def test_errors_stand_beside_their_fields_and_keep_what_was_typed(
    alice: Page, agent: steps.Agent
) -> None:
    grant = open_request(alice, agent, [READ, PAY], envelope={"max_requests_per_minute": 30})
    amount = alice.get_by_role("textbox", name="Maximum amount")
    rate = alice.get_by_role("spinbutton", name="Requests per minute")
    alice.get_by_text("Read “calendar/work”", exact=True).click()
    below = alice.get_by_role("textbox", name="Only below “calendar/work/”")
    below.fill("../../files")
    alice.get_by_text("Read “calendar/work”", exact=True).click()
    amount.fill("100.01")
    rate.fill("31")
    for field in (amount, rate):
        expect(field).to_have_attribute("aria-invalid", "true")
        expect(field).to_have_accessible_description(re.compile("more than the agent asked for"))
    steps.read(alice)
    alice.get_by_role("button", name="Approve with passkey").tap()
    expect(alice.get_by_role("alert")).to_contain_text("Correct the marked fields")
    # Its fold opens for the first wrong field, which gets the focus.
    expect(below).to_be_focused()
    assert [each.input_value() for each in (below, amount, rate)] == [
        "../../files",
        "100.01",
        "31",
    ]
    assert agent.status(grant)["status"] == "pending"
    for field, text in ((below, ""), (amount, "40"), (rate, "30")):
        field.fill(text)
    expect(alice.locator("[aria-invalid]")).to_have_count(0)
    expect(alice.locator(".field-error:visible")).to_have_count(0)
    expect(alice.locator("#sign-approve")).to_contain_text("€40.00 per payment")


def test_what_the_browser_cannot_read_is_an_error(alice: Page, agent: steps.Agent) -> None:
    open_request(alice, agent, [READ])
    uses = alice.get_by_role("spinbutton", name="Uses in all")
    uses.press("-")
    expect(uses).to_have_accessible_description(re.compile("Enter a whole number above zero."))
    uses.fill("3")
    alice.get_by_text("Hours", exact=True).click()
    begins = alice.get_by_label("From", exact=True)
    begins.focus()
    begins.press("Delete")
    expect(begins).to_have_accessible_description(re.compile("Enter a time such as 09:00."))
    begins.fill("09:00")
    expect(alice.locator("#sign-approve")).to_contain_text("09:00 to 24:00")


def test_a_lower_rate_lowers_the_burst(alice: Page, agent: steps.Agent) -> None:
    open_request(alice, agent, [READ], envelope={"max_requests_per_minute": 30, "max_burst": 10})
    alice.get_by_role("spinbutton", name="Requests per minute").fill("5")
    expect(alice.locator("#sign-approve")).to_contain_text("Up to 5 of them at once.")
    expect(alice.locator(".field-error:visible")).to_have_count(0)


def test_a_total_that_changed_is_shown_before_it_is_signed(alice: Page, agent: steps.Agent) -> None:
    first = open_request(alice, agent, [READ, FILES])
    steps.approve(alice, second_step=False)
    grant = str(agent.request("demo-service", [FILES])["grant_id"])
    alice.goto(f"{agent.registry.url}/approvals/{grant}/")
    permissions = alice.get_by_role("row", name=re.compile("^Permissions"))
    expect(permissions).to_have_text("Permissions23")
    # As if another tab had changed what is active.
    ended = "UPDATE registry_grant SET valid_until = '2020-01-01' WHERE id = ?"
    assert agent.registry.write(ended, uuid.UUID(first).hex) == 1
    steps.read(alice)
    approve = alice.get_by_role("button", name="Approve with passkey")
    approve.tap()
    expect(alice.get_by_role("alert")).to_contain_text("in total has changed")
    expect(permissions).to_have_text("Permissionsnone1")
    assert agent.status(grant)["status"] == "pending"
    approve.tap()
    expect(alice.get_by_role("status")).to_contain_text("Approved")


def test_enter_in_a_field_decides_nothing(alice: Page, agent: steps.Agent) -> None:
    grant = open_request(alice, agent, [READ])
    steps.read(alice)
    for name in ("Approve with passkey", "Deny"):
        expect(alice.get_by_role("button", name=name)).to_be_enabled()
    asked = posts_of(alice)
    uses = alice.get_by_role("spinbutton", name="Uses in all")
    uses.fill("3")
    uses.press("Enter")
    expect(alice.locator("#sign-approve")).to_contain_text("At most 3 uses in all.")
    days = alice.get_by_role("spinbutton", name="Valid for")
    alice.get_by_role("checkbox", name=re.compile("Only while my")).press("Enter")
    days.press("Enter")
    alice.get_by_role("textbox", name="Reason").press("Enter")
    alice.wait_for_timeout(500)
    # A page asks each 5 s how much waits, and each 20 s renews "I'm here".
    assert set(asked) <= {"review", "review-denial", "renew", "waiting"}
    assert agent.status(grant)["status"] == "pending"


def fill_in(page: Page) -> None:
    page.get_by_role("textbox", name="Maximum amount").fill("40.00")
    page.get_by_role("checkbox", name=re.compile("calendar")).uncheck()
    page.get_by_text("Hours", exact=True).click()
    page.get_by_role("checkbox", name="Sunday").uncheck()
    page.get_by_role("textbox", name="Reason").fill("Ask again tomorrow.")
    expect_filled_in(page)


def expect_filled_in(page: Page) -> None:
    expect(page.get_by_role("textbox", name="Maximum amount")).to_have_value("40.00")
    expect(page.get_by_role("checkbox", name=re.compile("calendar"))).not_to_be_checked()
    expect(page.get_by_role("checkbox", name="Sunday")).not_to_be_checked()
    expect(page.locator("#sign-approve")).to_contain_text("€40.00 per payment")
    expect(page.locator("#sign-approve")).to_contain_text("Monday to Saturday")
    expect(page.locator("#sign-deny")).to_contain_text("Ask again tomorrow.")


@pytest.mark.usefixtures("signed_in_afterwards")
def test_choices_survive_an_expired_session_until_the_decision(
    alice: Page, agent: steps.Agent
) -> None:
    grant = open_request(alice, agent, [READ, PAY])
    fill_in(alice)
    [key] = [each["value"] for each in alice.context.cookies() if "session" in each["name"]]
    gone = "DELETE FROM django_session WHERE session_key = ?"
    assert agent.registry.write(gone, stored_key(key)) == 1
    steps.read(alice)
    alice.get_by_role("button", name="Approve with passkey").tap()
    alice.get_by_role("button", name="Sign in with passkey").tap()
    alice.wait_for_url(f"**/approvals/{grant}/**")
    expect_filled_in(alice)
    assert len(choices_kept(alice, grant)) == 1
    steps.approve(alice)
    granted = agent.status(grant)["answer"]["granted"]
    assert [each["type"] for each in granted["capabilities"]] == ["transact"]
    assert choices_kept(alice, grant) == []


def test_choices_survive_a_page_that_changed(alice: Page, agent: steps.Agent) -> None:
    grant = open_request(alice, agent, [READ, PAY])
    fill_in(alice)
    rename(agent, grant, "Another Name")
    steps.read(alice)
    alice.get_by_role("button", name="Approve with passkey").tap()
    expect(alice.get_by_role("alert")).to_contain_text("is now called “Another Name”")
    alice.reload()
    expect_filled_in(alice)


def test_choices_are_undone_on_the_page(alice: Page, agent: steps.Agent) -> None:
    open_request(alice, agent, [READ, PAY])
    fill_in(alice)
    alice.get_by_role("button", name="Undo these changes").tap()
    expect(alice.locator("#sign-approve")).to_contain_text("€100.00 per payment")
    expect(alice.locator("#changes-box")).to_be_hidden()
    expect(alice.get_by_role("checkbox", name=re.compile("calendar"))).to_be_focused()
    expect(alice.get_by_role("textbox", name="Reason")).to_have_value("Ask again tomorrow.")
    alice.reload()
    expect(alice.get_by_role("checkbox", name=re.compile("calendar"))).to_be_checked()


@pytest.mark.usefixtures("signed_in_afterwards")
def test_choices_end_at_the_sign_out(
    alice: Page, agent: steps.Agent, registry: BrowserRegistry
) -> None:
    open_request(alice, agent, [READ, PAY])
    fill_in(alice)
    assert choices_kept(alice)
    alice.evaluate("scrollTo(0, 0)")
    steps.sign_out(alice)
    assert choices_kept(alice) == []
    steps.sign_in(alice, registry)


def rename(agent: steps.Agent, grant_id: str, name: str) -> None:
    """The agent's name changes while the page is open."""
    changed = agent.registry.write(
        "UPDATE registry_agent SET name = ? WHERE id ="
        " (SELECT agent_id FROM registry_grant WHERE id = ?)",
        name,
        uuid.UUID(grant_id).hex,
    )
    assert changed == 1
