"""What users do on the pages, and what the pages refuse, in a real browser."""

import json
import re
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from tests.actors import may_pay
from tests.browser import steps
from tests.browser.backstage import BrowserRegistry
from tests.browser.conftest import Device, add_authenticator

pytestmark = [pytest.mark.browser, pytest.mark.flow]
READ = {"type": "read", "resource": "calendar"}
SCRAP = {"type": "delete", "resource": "files/scratch"}
PAY = may_pay("100.00")


@pytest.fixture(scope="module")
def alice(chromium: Browser, registry: BrowserRegistry) -> Iterator[Page]:
    """Alice's browser: she is the first administrator and signed in."""
    context = chromium.new_context(locale="en-GB", timezone_id="Europe/Berlin")
    context.set_default_timeout(steps.PATIENCE)
    page = context.new_page()
    add_authenticator(page)
    steps.be_invited(page, registry, name="Alice", email="alice@people.example.org", admin=True)
    yield page
    context.close()


@pytest.fixture
def agent(alice: Page, registry: BrowserRegistry) -> steps.Agent:
    return steps.Agent(registry)


def open_request(
    page: Page, agent: steps.Agent, capabilities: list[object], **more: object
) -> dict[str, object]:
    """The agent asks for a grant, Alice claims the agent and sees the approval page."""
    asked = agent.request("demo-service", capabilities, **more)  # type: ignore[arg-type]
    steps.claim(page, str(asked["approval_url"]), str(asked["claim_code"]))
    expect(page.get_by_role("button", name="Approve with passkey")).to_be_visible()
    return asked


def test_sign_out_and_in_again(alice: Page, registry: BrowserRegistry) -> None:
    steps.sign_out(alice)
    try:
        alice.goto(registry.url + "/agents/")
        expect(alice.get_by_role("button", name="Sign in with passkey")).to_be_visible()
        alice.get_by_role("button", name="Sign in with passkey").click()
        expect(alice).to_have_url(re.compile("/agents/"))
    finally:
        # For the next test, even if this one fails.
        steps.be_signed_in(alice, registry)


def test_a_narrowed_approval_grants_exactly_what_is_left(alice: Page, agent: steps.Agent) -> None:
    asked = open_request(alice, agent, [READ, PAY], reason="To pay the invoices you forwarded.")
    alice.get_by_role("checkbox", name=re.compile("calendar")).uncheck()
    alice.get_by_role("textbox", name="Maximum amount").fill("40.00")
    alice.get_by_role("spinbutton", name="Requests per minute").fill("5")
    alice.get_by_role("spinbutton", name="Valid for").fill("3")
    expect(alice.get_by_text(re.compile("→.*40"))).to_be_visible()
    # What was typed last: a text that changes later would have to be read again.
    expect(alice.locator("#changes")).to_contain_text("Valid for, in days")
    steps.approve(alice)
    grant = agent.status(str(asked["grant_id"]))
    assert grant["status"] == "approved"
    text = json.dumps(grant)
    assert '"40.00"' in text
    assert "max_requests_per_minute" in text
    assert set(grant["answer"]["narrowed"]) == {
        "capabilities",
        "envelope.max_requests_per_minute",
        "valid_until",
    }


def test_a_denial_is_signed_and_its_reason_reaches_the_agent(
    alice: Page, agent: steps.Agent
) -> None:
    asked = open_request(alice, agent, [READ])
    steps.deny(alice, "Not today.")
    expect(alice.get_by_role("status")).to_contain_text("Denied")
    grant = agent.status(str(asked["grant_id"]))
    assert (grant["status"], grant["deny_reason"]) == ("denied", "Not today.")


def test_AP_2_a_reason_typed_after_the_text_was_read_is_read_first(
    alice: Page, agent: steps.Agent
) -> None:
    open_request(alice, agent, [READ])
    steps.read(alice)
    deny = alice.get_by_role("button", name="Deny")
    expect(deny).to_be_enabled()
    # Set without an event, as when a script of the browser itself fills in the field.
    alice.get_by_role("textbox", name="Reason").evaluate(
        "field => { field.value = 'Not “today”.' }"
    )
    deny.click()
    expect(alice.get_by_role("alert")).to_contain_text("The text has changed")
    text = alice.locator("#sign-deny")
    expect(text).to_contain_text("“Not \\u{201c}today\\u{201d}.”")
    steps.read(alice)
    deny.click()
    expect(alice.get_by_role("status")).to_contain_text("Denied")


def test_AP_13_the_second_step_can_be_left_and_grants_nothing_then(
    alice: Page, agent: steps.Agent
) -> None:
    asked = open_request(alice, agent, [SCRAP])
    steps.read(alice)
    alice.get_by_role("button", name="Approve with passkey").click()
    dialog = alice.get_by_role("dialog")
    expect(dialog).to_contain_text("scratch")
    alice.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    assert agent.status(str(asked["grant_id"]))["status"] == "pending"
    steps.approve(alice)
    assert agent.status(str(asked["grant_id"]))["status"] == "approved"


def test_a_read_needs_no_second_step(alice: Page, agent: steps.Agent) -> None:
    open_request(alice, agent, [READ])
    steps.approve(alice, second_step=False)


def test_an_already_decided_request_says_so_and_has_no_button(
    alice: Page, agent: steps.Agent
) -> None:
    asked = open_request(alice, agent, [READ])
    steps.approve(alice, second_step=False)
    alice.goto(f"{agent.registry.url}/approvals/{asked['grant_id']}/")
    expect(alice.get_by_role("status")).to_contain_text("Approved")
    expect(alice.get_by_role("button", name="Approve with passkey")).to_have_count(0)


def test_a_request_withdrawn_while_the_page_is_open_grants_nothing(
    alice: Page, agent: steps.Agent
) -> None:
    asked = open_request(alice, agent, [READ])
    agent.run("withdraw", asked["grant_id"])
    steps.read(alice)
    alice.get_by_role("button", name="Approve with passkey").click()
    expect(alice.get_by_role("alert")).to_contain_text(
        re.compile("changed|withdrawn", re.IGNORECASE)
    )
    assert agent.status(str(asked["grant_id"]))["status"] == "withdrawn"


def test_an_expired_request_says_so(alice: Page, agent: steps.Agent) -> None:
    asked = open_request(alice, agent, [READ])
    # Age this row by an hour.
    age(agent.registry, str(asked["grant_id"]))
    alice.reload()
    expect(alice.get_by_role("status")).to_contain_text("Expired")
    expect(alice.get_by_role("button", name="Approve with passkey")).to_have_count(0)


def test_a_receipt_shows_what_was_signed(alice: Page, agent: steps.Agent) -> None:
    open_request(alice, agent, [READ])
    steps.approve(alice, second_step=False)
    alice.get_by_role("link", name="Receipt").click()
    expect(alice.get_by_role("main")).to_contain_text("calendar")


def test_suspend_resume_and_revoke_an_agent(alice: Page, agent: steps.Agent) -> None:
    open_request(alice, agent, [READ])
    steps.approve(alice, second_step=False)
    alice.get_by_role("link", name=re.compile("Go to")).click()
    alice.get_by_role("button", name="Suspend agent").click()
    alice.get_by_role("link", name="Resume agent").click()
    expect(alice.get_by_role("main")).to_contain_text("may again read “calendar”")
    alice.get_by_role("button", name="Resume with passkey").click()
    expect(alice.get_by_role("button", name="Suspend agent")).to_be_visible()
    expect(alice.get_by_role("link", name="Signed receipt")).to_be_visible()
    alice.get_by_role("link", name="Revoke agent").click()
    revoke = alice.get_by_role("button", name="Revoke for good")
    expect(revoke).to_be_disabled()
    typed = alice.locator("form[data-typed]").get_attribute("data-typed") or ""
    alice.get_by_role("textbox", name="To confirm, type").fill(typed.upper())
    revoke.click()
    expect(alice.get_by_role("status")).to_contain_text("Revoked")


def test_SA_1_SA_7_an_administrator_signs_for_what_they_chose_in_a_list(
    alice: Page, agent: steps.Agent
) -> None:
    asked = open_request(alice, agent, [READ])
    grant = f'input[value="{asked["grant_id"]}"]'
    choose(alice, "grant", grant, "Deny the pending requests")
    alice.get_by_role("button", name="Deny with passkey").click()
    expect(alice).to_have_url(re.compile(f"/admin/registry/grant/{asked['grant_id']}/change/"))
    assert agent.status(str(asked["grant_id"]))["status"] == "denied"
    # Not the service of other tests, which would stay suspended if this one failed.
    shop = ("create_service_provider", "Corner Shop", "--audience", "https://corner.example")
    agent.registry.manage(*shop)
    provider = "tr:has-text('Corner Shop') input[name=_selected_action]"
    choose(alice, "serviceprovider", provider, "Suspend the service providers")
    expect(alice.get_by_text("Done for 1.")).to_be_visible()
    choose(alice, "serviceprovider", provider, "Resume the service providers")
    alice.get_by_role("button", name="Resume with passkey").click()
    expect(alice).to_have_url(re.compile("/admin/registry/serviceprovider/.*/change/"))
    expect(alice.get_by_text("Active", exact=True)).to_be_visible()


def choose(page: Page, model: str, row: str, action: str) -> None:
    """Tick one row of a control-room list and press a button for it."""
    page.goto(re.sub(r"^(https?://[^/]+).*", r"\1", page.url) + f"/admin/registry/{model}/")
    page.locator(row).check()
    option = page.get_by_role("option", name=re.compile(f"^{action}"))
    page.get_by_role("combobox", name="Action").select_option(label=option.inner_text())
    page.get_by_role("button", name="Go").click()


def test_AP_28_another_humans_request_is_as_if_it_were_not_there(
    alice: Page, agent: steps.Agent, chromium: Browser
) -> None:
    asked = open_request(alice, agent, [READ])
    bob = Device.opened(chromium).page
    steps.be_invited(bob, agent.registry, name="Bob", email="bob@example.org")
    answer = bob.goto(f"{agent.registry.url}/approvals/{asked['grant_id']}/")
    assert answer is not None
    assert answer.status == 404
    bob.context.close()


def test_i_am_here_is_a_switch_begun_by_passkey(alice: Page, registry: BrowserRegistry) -> None:
    alice.goto(registry.url + "/approvals/")
    switch = alice.get_by_role("switch", name="I'm here")
    expect(switch).not_to_be_checked()
    switch.click()
    expect(switch).to_be_checked()
    switch.click()
    expect(switch).not_to_be_checked()


def test_presence_is_renewed_on_each_page_that_is_opened(
    alice: Page, registry: BrowserRegistry
) -> None:
    """A minute of moving from page to page, none of them open for the 20 s of the interval."""
    alice.goto(registry.url + "/agents/")
    here = alice.get_by_role("switch", name="I'm here")
    here.click()
    expect(here).to_be_checked()
    # The next page, where the interval never ends: it does not renew what opening did not.
    page = alice.context.new_page()
    page.add_init_script("window.setInterval = () => 0")
    with page.expect_response("**/presence/renew") as renewed:
        page.goto(registry.url + "/approvals/")
    assert renewed.value.status == 200
    page.close()
    here.click()
    expect(here).not_to_be_checked()


def test_WR_7_a_passkey_is_added_and_removed_only_with_a_signature(
    alice: Page, chromium: Browser, registry: BrowserRegistry
) -> None:
    context = chromium.new_context()
    context.set_default_timeout(steps.PATIENCE)
    carol = context.new_page()
    session = context.new_cdp_session(carol)
    first = add_authenticator(carol, session)
    steps.be_invited(carol, registry, name="Carol", email="carol@example.org")
    carol.goto(registry.url + "/settings/")
    asked: list[str] = []
    carol.on("request", lambda request: asked.append(request.url.removeprefix(registry.url)))

    second: list[str] = []

    def touch(authenticator: str, *, enabled: bool) -> None:
        touched = {"authenticatorId": authenticator, "enabled": enabled}
        session.send("WebAuthn.setAutomaticPresenceSimulation", touched)

    def other_device(route: Route) -> None:
        # She signed with her old device; the touch that follows comes from the new one.
        touch(first, enabled=False)
        second.append(add_authenticator(carol, session, "usb"))
        route.continue_()

    carol.route("**/settings/passkeys/options", other_device)
    carol.get_by_role("button", name="Add passkey").click()
    expect(carol.get_by_role("button", name=re.compile("^Remove"))).to_have_count(2)
    posts = [path for path in asked if path.startswith(("/verify/", "/settings/passkeys/"))]
    assert posts == ["/verify/options", "/settings/passkeys/options", "/settings/passkeys/finish"]
    session.send("WebAuthn.removeVirtualAuthenticator", {"authenticatorId": second[0]})
    touch(first, enabled=True)
    carol.get_by_role("button", name="Remove “Passkey 2”").click()
    expect(carol.get_by_role("status")).to_contain_text("Passkey removed")
    carol.get_by_role("button", name="Create enrolment code").click()
    expect(carol.locator("#enrolment-code")).to_be_visible()
    context.close()


def test_a_person_downloads_their_data_as_often_as_they_like(
    alice: Page, registry: BrowserRegistry
) -> None:
    alice.goto(registry.url + "/settings/")
    for number in (1, 2):
        with alice.expect_download() as download:
            alice.get_by_role("button", name="Download your data").click()
        assert download.value.suggested_filename.startswith("agentauth-")
        body = json.loads(download.value.path().read_text())
        taken = [event for event in body["events"] if event["kind"] == "approvals.human.exported"]
        assert len(taken) == number
        assert body["account"]["id"] == taken[0]["human_id"]


def test_WR_15_a_recovery_waits_is_cancelled_in_one_press_and_used_once(
    alice: Page, registry: BrowserRegistry, chromium: Browser
) -> None:
    """Bob's recovery: begun by Alice, cancelled by him; begun again, used on a new device."""
    contexts = [chromium.new_context(), chromium.new_context()]
    bob, device = (context.new_page() for context in contexts)
    for page in (bob, device):
        page.context.set_default_timeout(steps.PATIENCE)
        add_authenticator(page)
    steps.be_invited(bob, registry, name="Bob", email="bob.recovered@example.org")
    begin_recovery(alice, registry, "bob.recovered@example.org")
    expect(alice.get_by_role("button", name="Create link with passkey")).to_have_count(0)
    bob.goto(registry.url + "/agents/")
    bob.get_by_role("button", name="Cancel the recovery").click()
    expect(bob.get_by_role("status")).to_contain_text("cancelled")
    begin_recovery(alice, registry, "bob.recovered@example.org")
    registry.stage("ready", "bob.recovered@example.org")
    alice.reload()
    alice.get_by_role("button", name="Create link with passkey").click()
    device.goto(alice.locator("#recovery-link").inner_text())
    device.get_by_role("button", name="Create passkey").click()
    expect(device.get_by_text("This account was recovered with a new passkey on")).to_be_visible()
    bob.goto(registry.url + "/agents/")
    expect(bob.get_by_role("button", name="Sign in with passkey")).to_be_visible()
    for context in contexts:
        context.close()


def test_WR_15_a_second_owner_ends_the_wait_of_a_recovery(
    alice: Page, registry: BrowserRegistry, chromium: Browser
) -> None:
    bob, second = (Device.opened(chromium).page for _ in range(2))
    steps.be_invited(bob, registry, name="Bob", email="bob.waits@example.org")
    steps.be_invited(second, registry, name="Zoe", email="zoe@example.org", admin=True)
    begin_recovery(alice, registry, "bob.waits@example.org")
    second.goto(alice.url)
    second.get_by_role("button", name="End the wait with passkey").click()
    expect(second.get_by_role("button", name="End the wait with passkey")).to_have_count(0)
    alice.reload()
    alice.get_by_role("button", name="Create link with passkey").click()
    expect(alice.locator("#recovery-link")).to_contain_text("/recover/")
    for page in (bob, second):
        page.context.close()


def begin_recovery(page: Page, registry: BrowserRegistry, email: str) -> None:
    page.goto(registry.url + "/admin/")
    steps.follow(page, page.get_by_role("link", name="Recover an account"))
    page.get_by_role("textbox", name="Name or e-mail").fill(email)
    # The page before it may have links to other recoveries of a Bob.
    steps.follow(page, page.get_by_role("button", name="Find"))
    steps.follow(page, page.get_by_role("link", name="Bob"))
    steps.follow(page, page.get_by_role("button", name="Start recovery (passkeys lost)"))
    expect(page.get_by_role("status")).to_contain_text("started")


def age(registry: BrowserRegistry, grant_id: str) -> None:
    """Move the request's end into the past, as an hour's wait would."""
    past = (datetime.now(UTC) - timedelta(minutes=1)).strftime("%Y-%m-%d %H:%M:%S")
    update = "UPDATE registry_grant SET expires_at = ? WHERE id = ?"
    assert registry.write(update, past, uuid.UUID(grant_id).hex) == 1
