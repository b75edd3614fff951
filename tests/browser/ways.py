"""How a browser gets to each page and state of `screens.py`."""

from collections.abc import Callable
from dataclasses import dataclass

from playwright.sync_api import Page, expect

from tests.browser import steps
from tests.browser.backstage import BrowserRegistry
from tests.browser.hostile_stage import LONG_ADDRESS, MIXED


@dataclass
class Theatre:
    """Alice, the first administrator, owns what was staged; Bob is new and has a hostile name.

    The visitor is not signed in.
    """

    registry: BrowserRegistry
    paths: dict[str, str]
    alice: Page
    bob: Page
    visitor: Page
    # Alice's session in a browser without JavaScript.
    scriptless: Page
    # Alice's session in a browser without WebAuthn.
    keyless: Page

    def open(self, page: Page, where: str) -> Page:
        page.goto(self.registry.url + self.paths.get(where, where))
        return page


Way = Callable[[Theatre], Page]


def at(path: str) -> Way:
    return lambda theatre: theatre.open(theatre.alice, path)


def as_bob(path: str) -> Way:
    return lambda theatre: theatre.open(theatre.bob, path)


def as_visitor(path: str) -> Way:
    return lambda theatre: theatre.open(theatre.visitor, path)


def setup(theatre: Theatre) -> Page:
    path = theatre.registry.manage("setup_link", "--email", LONG_ADDRESS)["url"]
    theatre.visitor.goto(path)
    return theatre.visitor


def wrong_claim_code(theatre: Theatre) -> Page:
    page = theatre.open(theatre.alice, "claim")
    page.get_by_role("textbox", name="Claim code").fill("WRNG-C0DE")
    steps.read(page)
    page.get_by_role("button", name="Claim agent").click()
    expect(page.get_by_role("alert")).not_to_be_empty()
    return page


def as_asked(theatre: Theatre, where: str) -> Page:
    """An approval page without what was typed there before."""
    page = theatre.open(theatre.alice, "/approvals/")
    page.evaluate("sessionStorage.clear()")
    return theatre.open(page, where)


def narrowed(theatre: Theatre) -> Page:
    page = as_asked(theatre, "many")
    page.get_by_role("checkbox").nth(3).uncheck()
    page.get_by_role("textbox", name="Maximum amount").fill("300.00")
    page.get_by_role("textbox", name="Daily budget").fill("900.00")
    page.get_by_role("spinbutton", name="Valid for").fill("3")
    expect(page.locator("#changes li")).to_have_count(4)
    return page


def widened(theatre: Theatre) -> Page:
    """With every fold open, and errors beside two fields."""
    page = as_asked(theatre, "many")
    page.evaluate("document.querySelectorAll('details').forEach((fold) => { fold.open = true })")
    amount = page.get_by_role("textbox", name="Maximum amount")
    amount.fill("9999.00")
    page.get_by_label("From", exact=True).fill("05:00")
    expect(amount).to_have_attribute("aria-invalid", "true")
    expect(page.locator(".field-error:visible")).to_have_count(2)
    return page


def second_step(theatre: Theatre) -> Page:
    page = as_asked(theatre, "many")
    steps.read(page)
    page.get_by_role("button", name="Approve with passkey").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    return page


def changed(theatre: Theatre) -> Page:
    page = theatre.open(theatre.alice, "changed")
    theatre.registry.stage("withdraw", theatre.paths["changed"].split("/")[2])
    steps.read(page)
    page.get_by_role("button", name="Approve with passkey").click()
    expect(page.get_by_role("alert")).not_to_be_empty()
    return page


def approved(theatre: Theatre) -> Page:
    page = theatre.open(theatre.alice, "to-approve")
    steps.approve(page)
    expect(page.get_by_role("link", name="Receipt")).to_be_visible()
    return page


def renewal(theatre: Theatre) -> Page:
    page = theatre.open(theatre.alice, "in-use")
    page.get_by_role("button", name="Renew").press("Enter")
    expect(page.get_by_role("heading", name="Renew the grant of")).to_be_visible()
    return page


def receipt(theatre: Theatre) -> Page:
    page = theatre.open(theatre.alice, "to-approve")
    page.get_by_role("link", name="Receipt").click()
    expect(page.get_by_role("heading", name="Receipt")).to_be_visible()
    return page


def denied(theatre: Theatre) -> Page:
    page = theatre.open(theatre.alice, "to-deny")
    steps.deny(page, "Keep the scratch files until the audit is over.")
    expect(page.get_by_role("link", name="Receipt")).to_be_visible()
    return page


def presence_on(theatre: Theatre) -> Page:
    page = theatre.open(theatre.bob, "/agents/")
    page.get_by_role("switch", name="I'm here").click()
    expect(page.get_by_role("switch", name="I'm here")).to_be_checked()
    return page


def offline(theatre: Theatre) -> Page:
    page = theatre.open(theatre.alice, "confirmation-pending")
    page.route("**/statement", lambda route: route.abort())
    steps.read(page)
    page.get_by_role("button", name="Confirm with passkey").click()
    expect(page.get_by_role("alert")).not_to_be_empty()
    page.unroute("**/statement")
    return page


def resumed(theatre: Theatre) -> Page:
    page = theatre.open(theatre.alice, "resume-agent")
    page.get_by_role("button", name="Resume with passkey").click()
    expect(page.get_by_role("link", name="Signed receipt")).to_be_visible()
    return page


def own_ending(theatre: Theatre) -> Page:
    page = at(f"{theatre.paths['agent-active']}revoke/")(theatre)
    expect(page.get_by_role("button", name="Revoke for good")).to_be_disabled()
    page.get_by_role("textbox", name="To confirm, type").fill("research assistant")
    expect(page.get_by_role("button", name="Revoke for good")).to_be_enabled()
    return page


def code_shown(theatre: Theatre) -> Page:
    page = theatre.open(theatre.alice, "/settings/")
    page.get_by_role("button", name="Create enrolment code").click()
    expect(page.locator("#enrolment-code")).to_be_visible()
    return page


def webhook_added(theatre: Theatre) -> Page:
    """With the form of the new webhook and the one for e-mail open."""
    page = theatre.open(theatre.alice, "/settings/")
    page.get_by_text("Add a webhook").click()
    page.get_by_role("textbox", name="Address").fill("https://hooks.example.org/alice")
    page.get_by_role("button", name="Add webhook").click()
    expect(page.locator("#webhook-secret")).to_contain_text("whsec_")
    page.get_by_text("Change or remove").first.click()
    page.get_by_text("Get e-mail").click()
    return page


def browser_to_add(theatre: Theatre) -> Page:
    """With the form that adds this browser open."""
    page = theatre.open(theatre.alice, "/settings/")
    page.get_by_text("Get notifications in this browser").click()
    expect(page.get_by_role("button", name="Switch on in this browser")).to_be_visible()
    return page


def forged(theatre: Theatre) -> Page:
    """A form whose CSRF token we did not issue."""
    page = theatre.open(theatre.alice, "/settings/")
    page.evaluate(
        "document.querySelectorAll('[name=csrfmiddlewaretoken]').forEach(e => e.value = 'x')"
    )
    page.get_by_role("button", name="Save time zone").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("out of date")
    return page


def made(theatre: Theatre) -> Page:
    page = theatre.open(theatre.alice, "/admin/invite/")
    page.get_by_label("E-mail").fill("dora@example.org")
    page.get_by_role("button", name="Invite a human").click()
    expect(page.get_by_role("status")).to_be_visible()
    return page


def row_of(rows: str, then: str = "") -> Way:
    """The control room's page of the first row of a list, and a page of its acts."""

    def way(theatre: Theatre) -> Page:
        page = theatre.open(theatre.alice, f"/admin/{rows}/")
        steps.follow(page, page.locator("#result_list tbody th a").first)
        for folded in page.locator("main summary").all():
            folded.click()
        if then:
            steps.follow(page, page.get_by_role("link", name=then))
        return page

    return way


def role_form(theatre: Theatre) -> Page:
    """Of the other person: no one changes their own."""
    page = theatre.open(theatre.alice, "/admin/registry/human/?q=bob")
    steps.follow(page, page.locator("#result_list tbody").get_by_role("link").first)
    steps.follow(page, page.get_by_role("link", name="Change role"))
    expect(page.get_by_role("radio")).to_have_count(5)
    return page


def refused_form(theatre: Theatre) -> Page:
    page = theatre.open(theatre.alice, "/admin/new-service-provider/")
    page.get_by_label("Name").fill("Beta Mail")
    page.get_by_label("Audience URL").fill("ftp://beta.example")
    page.get_by_role("button", name="Create a service provider").click()
    # The passkey signs first; then the form comes back with its errors.
    expect(page.get_by_text("The audience must be an absolute URL.")).to_be_visible()
    return page


def signed_log(theatre: Theatre) -> Page:
    theatre.registry.stage("sign_log", "alice@example.org")
    page = theatre.open(theatre.alice, "/activity/")
    page.get_by_text("What was checked").click()
    return page


def event_of(words: str) -> Way:
    """The page of the newest event whose sentence begins so."""

    def way(theatre: Theatre) -> Page:
        page = theatre.open(theatre.alice, "/activity/?kind=transact")
        steps.follow(page, page.get_by_role("link", name=words).first)
        expect(page.get_by_role("heading", level=1)).to_contain_text(words)
        for folded in page.locator("main summary").all():
            folded.click()
        return page

    return way


def wrong_log(theatre: Theatre) -> Page:
    """An attacker with database access has changed an event."""
    theatre.registry.stage("tamper", "another")
    page = theatre.open(theatre.alice, "/activity/")
    expect(
        page.get_by_role("heading", name="The log does not match what was signed")
    ).to_be_visible()
    return page


def scriptless(theatre: Theatre) -> Page:
    return theatre.open(theatre.scriptless, "many")


def keyless(theatre: Theatre) -> Page:
    return theatre.open(theatre.keyless, "pending")


def break_signed(theatre: Theatre) -> Page:
    page = theatre.open(theatre.alice, "restore")
    steps.read(page)
    page.get_by_role("button", name="Sign with passkey").click()
    # Only on the page that follows: that the button is gone may be true between the two.
    expect(page.locator(".note.quiet", has_text="Signed")).to_be_visible()
    return page


def release_reviewed(theatre: Theatre) -> Page:
    page = theatre.open(theatre.alice, "release")
    for box in page.get_by_role("checkbox").all()[:2]:
        box.check()
    page.get_by_role("button", name="Review the chosen grants").click()
    expect(page.get_by_role("heading", name="Release these grants?")).to_be_visible()
    return page


def recoveries(theatre: Theatre) -> Page:
    theatre.paths |= theatre.registry.stage("recoveries", "alice@example.org")
    return theatre.open(theatre.alice, "/recoveries/?find=example.org")


def recovery_begun(theatre: Theatre) -> Page:
    page = theatre.open(theatre.alice, "recovery-bob")
    page.get_by_role("button", name="Start recovery (passkeys lost)").click()
    expect(page.get_by_role("status")).to_contain_text("started")
    return page


def recovery_link(theatre: Theatre) -> Page:
    page = theatre.open(theatre.alice, "recovery-finn")
    page.get_by_role("button", name="Create link with passkey").click()
    expect(page.get_by_role("heading", name="The recovery link")).to_be_visible()
    return page


def recovery_cancelled(theatre: Theatre) -> Page:
    page = theatre.open(theatre.bob, "/recovery/")
    page.get_by_role("button", name="Cancel the recovery").click()
    expect(page.get_by_role("status")).to_contain_text("cancelled")
    return page


def hostile_approval(theatre: Theatre) -> Page:
    found = theatre.registry.stage("set_up_hostile", "alice@example.org")
    theatre.paths |= {f"hostile-{name}": path for name, path in found.items()}
    return theatre.open(theatre.alice, "hostile-approval-long")


def hostile_receipt(theatre: Theatre) -> Page:
    page = theatre.open(theatre.alice, "hostile-approval-long")
    page.get_by_role("textbox", name="Reason").fill(MIXED)
    expect(page.locator("#sign-deny")).to_contain_text("You decline")
    steps.read(page)
    page.get_by_role("button", name="Deny").click()
    page.get_by_role("link", name="Receipt").click()
    expect(page.get_by_role("heading", name="Receipt")).to_be_visible()
    return page


def words(theatre: Theatre) -> Page:
    """A request at a service with words of its own."""
    theatre.paths |= theatre.registry.stage("set_up_catalogue", "alice@example.org")
    page = theatre.open(theatre.alice, "words")
    for folded in page.locator("details.allow-less > summary").all()[:2]:
        folded.click()
    page.get_by_text("Exact identifiers").first.click()
    return page


def approvers(theatre: Theatre) -> Page:
    theatre.paths |= theatre.registry.stage("approvers", "alice@example.org")
    page = theatre.open(theatre.alice, "/approvers/?type=transact&amount=80.00&currency=EUR")
    page.evaluate("document.querySelectorAll('details').forEach((fold) => { fold.open = true })")
    return page
