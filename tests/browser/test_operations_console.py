"""An administrator works in the control room, and a person stops their agents and sessions."""

import csv
import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser import steps
from tests.browser.backstage import BrowserRegistry
from tests.browser.catalogue_stage import drawn_logo
from tests.browser.conftest import ALICE, Device
from tests.browser.test_keyboard import tab_to

pytestmark = [pytest.mark.browser, pytest.mark.flow]


@pytest.fixture
def alice(desk: Device, scenes: dict[str, str]) -> Page:
    """An administrator whose agents are staged."""
    assert scenes
    return desk.page


def open_row(page: Page, registry: BrowserRegistry, rows: str, name: str) -> None:
    """From the first page through the list to the page of a row, as a person does."""
    page.goto(registry.url + "/admin/")
    steps.follow(page, page.get_by_role("link", name=rows, exact=True))
    page.get_by_role("textbox").first.fill(name)
    # The list before the search has a first row too.
    steps.follow(page, page.get_by_role("button", name="Search"))
    steps.follow(page, page.locator("#result_list tbody").get_by_role("link").first)
    expect(page.get_by_role("heading", level=1)).to_contain_text(name)


def test_administrator_changes_rotates_suspends_and_resumes_a_service_provider(
    alice: Page, registry: BrowserRegistry
) -> None:
    open_row(alice, registry, "Service providers", "Harbour Files")
    alice.get_by_role("link", name="Change audience or allow-list").click()
    allowed = alice.get_by_label("What agents may ask for")
    allowed.fill(allowed.input_value() + "\nread:archive")
    alice.get_by_role("button", name="Change a service provider").click()
    expect(alice.get_by_text("Saved. Grants that wait for a new signature: 0.")).to_be_visible()
    alice.get_by_role("link", name="Rotate secret").click()
    alice.get_by_role("button", name="Rotate the secret").click()
    expect(alice.get_by_text("New client secret (not shown again)")).to_be_visible()
    alice.get_by_role("link", name="Back to the service provider").click()
    expect(alice.get_by_role("cell", name="valid")).to_have_count(2)
    alice.get_by_role("link", name="End previous secrets").click()
    alice.get_by_role("button", name="End the previous secrets").click()
    expect(alice.get_by_text("Secrets ended: 1.")).to_be_visible()
    expect(alice.get_by_role("cell", name="valid")).to_have_count(1)
    alice.get_by_role("button", name="Suspend service provider").click()
    expect(alice.get_by_text("Done for 1.")).to_be_visible()
    alice.get_by_role("button", name="Resume service provider").click()
    alice.get_by_role("button", name="Resume with passkey").click()
    expect(alice).to_have_url(re.compile("/admin/registry/serviceprovider/.*/change/"))
    history = alice.locator(".history")
    for words in ("was resumed", "was suspended", "Secrets of", "got a new secret"):
        expect(history.get_by_role("link", name=re.compile(words)).first).to_be_visible()


def test_administrator_suspends_an_agent_and_follows_its_links_and_history(
    alice: Page, registry: BrowserRegistry
) -> None:
    open_row(alice, registry, "Agents", "Trip Planner")
    agent_page = alice.url.partition("?")[0]
    alice.get_by_role("button", name="Suspend agent").click()
    expect(alice).to_have_url(agent_page)
    alice.locator(".history").get_by_role("link").first.click()
    expect(alice.get_by_text("was suspended").first).to_be_visible()
    alice.get_by_role("link", name="Trip Planner").click()
    expect(alice).to_have_url(agent_page)
    alice.get_by_role("link", name="All events").click()
    expect(alice.get_by_role("heading", name="Events")).to_be_visible()
    alice.goto(agent_page)
    alice.get_by_role("button", name="Resume agent").click()
    alice.get_by_role("button", name="Resume with passkey").click()
    expect(alice).to_have_url(agent_page)
    alice.get_by_role("link", name="Requests and grants").click()
    expect(alice.get_by_role("heading", name="Grants")).to_be_visible()


def test_administrator_exports_a_filtered_list(
    alice: Page, registry: BrowserRegistry, tmp_path: Path
) -> None:
    alice.goto(registry.url + "/admin/registry/agent/")
    # Each adds to the filters of the page it is on.
    for name in ("Revoked", "Last 30 days"):
        steps.follow(alice, alice.get_by_role("link", name=name))
    expect(alice).to_have_url(re.compile("when=month"))
    with alice.expect_download() as started:
        alice.get_by_role("link", name="Export as CSV").click()
    file = tmp_path / "agents.csv"
    started.value.save_as(file)
    _head, *rows = csv.reader(file.read_text(encoding="utf-8-sig").splitlines())
    assert {row[2] for row in rows} == {"revoked"}


def confirm_end(page: Page, button: str) -> None:
    """On the page that shows what ends: type the name, and sign."""
    typed = page.locator("form[data-typed]").get_attribute("data-typed") or ""
    page.get_by_role("textbox", name="To confirm, type").fill(typed)
    page.get_by_role("button", name=button).click()
    expect(page.get_by_role("button", name=button)).to_have_count(0)


def make_owner(
    page: Page, chromium: Browser, registry: BrowserRegistry, name: str, email: str
) -> Page:
    """Invite a person as an owner; returns their page, signed in."""
    page.goto(registry.url + "/admin/invite/")
    page.get_by_label("E-mail").fill(email)
    page.get_by_role("radio", name=re.compile("^Owner")).check()
    page.get_by_role("button", name="Invite a human").click()
    link = page.get_by_text(re.compile("/setup/")).inner_text()
    other = Device.opened(chromium).page
    other.goto(link)
    other.get_by_role("textbox", name="Your name").fill(name)
    other.get_by_role("button", name="Create passkey").click()
    expect(other.get_by_role("link", name="Approvals")).to_be_visible()
    return other


def test_an_owner_makes_another_owner_an_approver_without_a_mouse(
    alice: Page, chromium: Browser, registry: BrowserRegistry
) -> None:
    second = make_owner(alice, chromium, registry, "Second Owner", "second@example.org")
    second.get_by_role("link", name="Control room").click()
    expect(second.get_by_role("link", name="Invite a human")).to_be_visible()
    open_row(alice, registry, "Humans", "Second Owner")
    tab_to(alice, alice.get_by_role("link", name="Change role"))
    alice.keyboard.press("Enter")
    owner = alice.get_by_role("radio", name=re.compile("^Owner"))
    expect(owner).to_be_checked()
    tab_to(alice, owner)
    for _ in ("Operator", "Approver"):
        alice.keyboard.press("ArrowDown")
    expect(alice.get_by_role("radio", name=re.compile("^Approver"))).to_be_checked()
    tab_to(alice, alice.get_by_role("button", name="Change the role"))
    alice.keyboard.press("Enter")
    expect(alice.get_by_text("The role was changed. The person is signed out.")).to_be_visible()
    expect(alice.get_by_text("The role of the account was changed to: Approver")).to_be_visible()
    # Signed out, and with no more than the new role from then on.
    second.reload()
    expect(second.get_by_role("button", name="Sign in with passkey")).to_be_visible()
    steps.sign_in(second, registry)
    second.goto(registry.url + "/admin/")
    expect(second.get_by_text("Reads requests, grants, agents")).to_be_visible()
    expect(second.get_by_role("link", name="What you may decide now")).to_be_visible()
    for name in ("Invite a human", "Humans", "Events"):
        expect(second.get_by_role("link", name=name, exact=True)).to_have_count(0)
    for place in ("invite/", "registry/human/", "log/"):
        answer = second.goto(f"{registry.url}/admin/{place}")
        assert answer is not None
        assert answer.status == 403, place
        expect(
            second.get_by_text("Your role in this registry does not allow this.")
        ).to_be_visible()
    second.goto(registry.url + "/admin/registry/grant/")
    offered = second.get_by_role("combobox", name="Action").get_by_role("option")
    assert [each for each in offered.all_inner_texts() if "-" not in each] == [
        "Deny the pending requests (you sign for each)"
    ]
    second.context.close()


def test_administrator_suspends_resumes_and_deletes_a_person(
    alice: Page, chromium: Browser, registry: BrowserRegistry
) -> None:
    guest = make_owner(alice, chromium, registry, "Third Owner", "third@example.org")
    open_row(alice, registry, "Humans", "Third Owner")
    for act in ("Sign out everywhere", "Suspend human"):
        # The second says what the first said, so only the page that follows tells.
        steps.follow(alice, alice.get_by_role("button", name=act))
        expect(alice.get_by_text("Done for 1.")).to_be_visible()
    guest.reload()
    expect(guest.get_by_role("button", name="Sign in with passkey")).to_be_visible()
    alice.get_by_role("button", name="Resume human").click()
    alice.get_by_role("button", name="Resume with passkey").click()
    alice.get_by_role("button", name="Delete human").click()
    confirm_end(alice, "Delete for good")
    guest.get_by_role("button", name="Sign in with passkey").click()
    expect(guest.get_by_role("alert")).not_to_be_empty()
    guest.context.close()


def test_administrator_makes_a_service_and_signs_for_its_words(
    alice: Page, registry: BrowserRegistry
) -> None:
    words = '{"actions": {"read:mail": {"label": "Read mail", "sentence": "Opens your mail."}}}'
    alice.goto(registry.url + "/admin/")
    expect(alice.get_by_role("heading", name="Pending approvals")).to_be_visible()
    alice.get_by_role("link", name="Create a service provider").click()
    alice.get_by_label("Name").fill("Postbox")
    alice.get_by_label("Audience URL").fill("http://127.0.0.1:8003")
    alice.get_by_label("What agents may ask for").fill("read:mail")
    alice.get_by_role("button", name="Create a service provider").click()
    expect(alice.get_by_text("Client secret (not shown again)")).to_be_visible()
    alice.goto(registry.url + "/admin/new-catalogue/")
    alice.get_by_label("Service provider").select_option(label="Postbox")
    alice.get_by_label("Its own words, as JSON").fill(words)
    alice.get_by_role("button", name="Propose a service’s words").click()
    expect(alice.get_by_role("heading", name="As people will see it")).to_be_visible()
    # Another day, from the first page.
    alice.goto(registry.url + "/admin/")
    steps.follow(alice, alice.get_by_role("link", name="Postbox, version 1"))
    steps.read(alice)
    alice.get_by_role("button", name="Approve with passkey").click()
    expect(alice.get_by_role("link", name="Download signed receipt")).to_be_visible()
    alice.get_by_role("link", name="The service", exact=True).click()
    alice.get_by_role("button", name="Revoke service provider").click()
    confirm_end(alice, "Revoke for good")


def test_administrator_makes_a_code_forgets_an_invitation_and_changes_keys(
    alice: Page, registry: BrowserRegistry
) -> None:
    alice.goto(registry.url + "/admin/enrolment-code/")
    alice.get_by_label("Human").select_option(index=1)
    alice.get_by_role("button", name="Create an enrolment code").click()
    expect(alice.get_by_text("Enrolment code (works once, for 15 minutes)")).to_be_visible()
    alice.goto(registry.url + "/admin/invite/")
    alice.get_by_label("E-mail").fill("dora@example.org")
    alice.get_by_role("button", name="Invite a human").click()
    expect(alice.get_by_text(re.compile("/setup/"))).to_be_visible()
    alice.goto(registry.url + "/admin/approvals/setupcode/?q=dora@example.org")
    alice.locator("#result_list tbody").get_by_role("link").first.click()
    alice.get_by_role("button", name="Forget invitation").click()
    confirm_end(alice, "Forget for good")
    keys = registry.url + "/admin/kms/key/?purpose__exact=token&state__exact="
    alice.goto(keys + "active")
    alice.locator("#result_list tbody th a").first.click()
    alice.get_by_role("button", name="Publish the next key").click()
    expect(alice.get_by_text("Done for 1.")).to_be_visible()
    alice.goto(keys + "next")
    alice.locator("#result_list tbody th a").first.click()
    alice.get_by_role("button", name="Disable key").click()
    confirm_end(alice, "Disable for good")


def test_administrator_stops_resumes_and_revokes_a_grant_and_an_agent(
    alice: Page, registry: BrowserRegistry
) -> None:
    alice.goto(registry.url + "/admin/registry/grant/?status__exact=approved")
    alice.locator("#result_list tbody").get_by_role("link").first.click()
    alice.get_by_role("button", name="Suspend grant").click()
    expect(alice.get_by_text("Done for 1.")).to_be_visible()
    alice.get_by_role("button", name="Resume grant").click()
    alice.get_by_role("button", name="Resume with passkey").click()
    expect(alice).to_have_url(re.compile("/admin/registry/grant/.*/change/"))
    alice.get_by_role("button", name="Revoke grant").click()
    confirm_end(alice, "Revoke for good")
    open_row(alice, registry, "Agents", "Held Helper")
    alice.get_by_role("button", name="Revoke agent").click()
    confirm_end(alice, "Revoke for good")


def test_administrator_sends_a_dead_message_again_and_revokes_a_certificate(
    alice: Page, registry: BrowserRegistry
) -> None:
    registry.stage("broken", ALICE)
    alice.goto(registry.url + "/admin/approvals/notification/?state__exact=dead")
    alice.locator("#result_list tbody").get_by_role("link").first.click()
    alice.get_by_role("button", name="Send again").click()
    expect(alice.get_by_text("Done for 1.")).to_be_visible()
    alice.goto(registry.url + "/admin/kms/keycertificate/")
    alice.locator("#result_list tbody").get_by_role("link").first.click()
    alice.get_by_role("button", name="Revoke certificate").click()
    confirm_end(alice, "Revoke for good")


def test_administrator_refuses_the_words_of_a_service(
    alice: Page, registry: BrowserRegistry
) -> None:
    words = '{"actions": {"read:files": {"label": "Harmless", "sentence": "Does nothing."}}}'
    alice.goto(registry.url + "/admin/new-catalogue/")
    alice.get_by_label("Service provider").select_option(label="Harbour Files")
    alice.get_by_label("Its own words, as JSON").fill(words)
    alice.get_by_role("button", name="Propose a service’s words").click()
    alice.get_by_role("button", name="Refuse").click()
    expect(alice.get_by_text("Refused").first).to_be_visible()
    expect(alice.get_by_role("button", name="Approve with passkey")).to_have_count(0)


def test_person_signs_out_another_browser(
    desk: Device, alice: Page, chromium: Browser, registry: BrowserRegistry
) -> None:
    phone = Device.opened(chromium)
    phone.take_passkeys(desk)
    try:
        steps.sign_in(phone.page, registry)
    finally:
        # Else the next signature at the desk would have a lower counter.
        desk.take_passkeys(phone)
    suggestion = phone.page.get_by_role("link", name="Add a second passkey")
    expect(suggestion).to_be_visible()
    phone.page.reload()
    expect(suggestion).to_have_count(0)
    alice.goto(registry.url + "/settings/")
    alice.get_by_role("button", name="Sign out this one").click()
    expect(alice.get_by_role("status")).to_contain_text("Signed out there")
    expect(alice.get_by_text("You are signed in nowhere else.")).to_be_visible()
    phone.page.reload()
    expect(phone.page.get_by_role("button", name="Sign in with passkey")).to_be_visible()
    phone.page.context.close()


def test_all_agents_are_suspended_from_any_page_without_a_mouse(
    alice: Page, registry: BrowserRegistry
) -> None:
    alice.goto(registry.url + "/activity/")
    tab_to(alice, alice.get_by_role("link", name="Suspend all agents"))
    alice.keyboard.press("Enter")
    press = alice.get_by_role("button", name=re.compile(r"Suspend \d+ agents"))
    expect(press).to_be_visible()
    tab_to(alice, press)
    alice.keyboard.press("Enter")
    expect(alice.get_by_role("status")).to_contain_text("resume it with your passkey")
    expect(alice.locator(".state-active")).to_have_count(0)
    tab_to(alice, alice.get_by_role("link", name="What “I’m here” means"))
    alice.keyboard.press("Enter")
    expect(alice.get_by_role("heading", name="What “I’m here” means")).to_be_in_viewport()


def test_an_administrator_uploads_signs_for_and_removes_a_logo(
    alice: Page, registry: BrowserRegistry
) -> None:
    open_row(alice, registry, "Service providers", "Acme")
    alice.get_by_role("link", name="Change logo").click()
    picture, upload = alice.get_by_label("Picture"), alice.get_by_role("button", name="Upload")
    picture.set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": b"<svg/>"})
    upload.click()
    expect(alice.get_by_role("alert")).to_contain_text("must be a PNG, JPEG or WebP picture")
    logo = drawn_logo("#0b6e4f")
    picture.set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": logo})
    upload.click()
    expect(alice.get_by_role("heading", name="Waits for an administrator")).to_be_visible()
    steps.read(alice)
    # The page that waited names the logo and shows it too.
    steps.follow(alice, alice.get_by_role("button", name="Approve with passkey"))
    expect(alice.get_by_role("main")).to_contain_text("the service’s logo")
    shown = alice.locator("img.logo")
    assert shown.evaluate("each => each.decode().then(() => each.naturalWidth)") == 128
    alice.get_by_role("button", name="Remove the logo").click()
    expect(shown).to_have_count(0)
