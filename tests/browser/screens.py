"""Every page and state a user can meet, by name, and how to get there."""

from collections.abc import Callable
from dataclasses import dataclass, field

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


@dataclass(frozen=True)
class Screen:
    """One screenshot. `answers` are refusals on the way there, which a browser logs as errors."""

    way: Way
    answers: frozenset[int] = field(default_factory=frozenset)
    # axe is a script, so it cannot run where scripts are off.
    runs_scripts: bool = True
    # A dialog covers the window, not the whole page below it.
    whole: bool = True


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
    page.evaluate(
        "document.querySelectorAll('.allow-less').forEach((fold) => { fold.open = true })"
    )
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
        page.locator("#result_list tbody th a").first.click()
        for folded in page.locator("main summary").all():
            folded.click()
        if then:
            page.get_by_role("link", name=then).click()
        return page

    return way


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
        page = theatre.open(theatre.alice, "/activity/")
        page.get_by_role("link", name=words).first.click()
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
    expect(page.get_by_role("button", name="Sign with passkey")).to_have_count(0)
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


NOT_FOUND = "/approvals/01900000-0000-7000-8000-000000000000/"
# The order matters: later screens may rely on what earlier ones did.
SCREENS = {
    "front-signed-out": Screen(as_visitor("/")),
    "front-signed-in": Screen(at("/")),
    # Taller than a screenshot may be.
    "docs": Screen(as_visitor("/docs/"), whole=False),
    "sign-in": Screen(as_visitor("/sign-in/")),
    "setup": Screen(setup),
    "inbox-empty": Screen(as_bob("/approvals/")),
    "agents-empty": Screen(as_bob("/agents/")),
    "presence-on": Screen(presence_on),
    "claim": Screen(at("claim")),
    "claim-look-alike": Screen(at("claim-look-alike")),
    "claim-wrong-code": Screen(wrong_claim_code, frozenset({400})),
    "claim-expired": Screen(at("claim-expired"), frozenset({410})),
    "inbox-waiting": Screen(at("/approvals/")),
    "approval-new-agent": Screen(at("pending")),
    "approval-many-rows": Screen(at("many")),
    "approval-narrowed": Screen(narrowed),
    "approval-widened": Screen(widened, frozenset({400})),
    "approval-second-step": Screen(second_step, whole=False),
    "approval-sign-again": Screen(at("anew")),
    "approval-look-alike": Screen(at("look-alike")),
    "approval-without-javascript": Screen(scriptless, runs_scripts=False),
    "approval-without-passkeys": Screen(keyless),
    "approval-changed": Screen(changed, frozenset({409})),
    "approval-approved": Screen(approved),
    "receipt": Screen(receipt),
    "approval-denied": Screen(denied),
    "approval-expired": Screen(at("expired")),
    "approval-withdrawn": Screen(at("withdrawn")),
    "approval-revoked": Screen(at("revoked")),
    "approval-suspended": Screen(at("suspended")),
    "confirmation-pending": Screen(at("confirmation-pending")),
    "confirmation-offline": Screen(offline, frozenset({0})),
    "confirmation-confirmed": Screen(at("confirmation-confirmed")),
    "confirmation-denied": Screen(at("confirmation-denied")),
    "confirmation-expired": Screen(at("confirmation-expired")),
    "agents": Screen(at("/agents/")),
    "suspend-all": Screen(at("/agents/suspend-all/")),
    "suspend-all-empty": Screen(as_bob("/agents/suspend-all/")),
    "agent-active": Screen(at("agent-active")),
    "agent-new": Screen(at("agent-new")),
    "agent-look-alike": Screen(at("agent-look-alike")),
    "agent-suspended": Screen(at("agent-suspended")),
    "agent-revoked": Screen(at("agent-revoked")),
    "resume-agent": Screen(at("resume-agent")),
    "resume-grant": Screen(at("resume-grant")),
    "resume-list": Screen(at("resume-list")),
    "resume-done": Screen(resumed),
    "denial": Screen(at("denial")),
    "ending-own-agent": Screen(own_ending),
    "ending-own-grant": Screen(lambda theatre: at(f"{theatre.paths['suspended']}revoke/")(theatre)),
    "ending-several": Screen(at("ending-agent")),
    "ending-human": Screen(at("ending-human")),
    "ending-keys": Screen(at("ending-key")),
    "activity-unsigned-log": Screen(at("/activity/")),
    "activity": Screen(signed_log),
    "activity-filtered": Screen(at("/activity/?kind=transact&outcome=denied")),
    "activity-nothing-found": Screen(at("/activity/?kind=delete&from=2026-01-01")),
    "activity-wrong-filter": Screen(at("/activity/?from=soon&to=2026-01-01")),
    "event-allowed": Screen(event_of("Paid €80.00")),
    "event-refused": Screen(event_of("Was not allowed to pay €80.00")),
    "spending": Screen(at("/activity/spending/")),
    "spending-empty": Screen(as_bob("/activity/spending/")),
    "control-room-log": Screen(at("/admin/log/")),
    "settings": Screen(at("/settings/")),
    "settings-code-shown": Screen(code_shown),
    "settings-webhook-added": Screen(webhook_added),
    "settings-browser-to-add": Screen(browser_to_add),
    "recoveries": Screen(recoveries),
    "recover": Screen(as_visitor("recover-link")),
    "recovered": Screen(as_visitor("/recovered/")),
    "recovery-choice": Screen(at("recovery-erin")),
    "recovery-stolen": Screen(at("recovery-gwen")),
    "recovery-ready": Screen(at("recovery-finn")),
    "recovery-link": Screen(recovery_link),
    "recovery-waiting": Screen(recovery_begun),
    "recovery-banner": Screen(as_bob("/approvals/")),
    "recovery-own": Screen(as_bob("/recovery/")),
    "recovery-cancelled": Screen(recovery_cancelled),
    "components": Screen(at("/components/")),
    "not-found": Screen(at(NOT_FOUND), frozenset({404})),
    "forged-form": Screen(forged, frozenset({403})),
    "control-room": Screen(at("/admin/")),
    "control-room-grants": Screen(at("/admin/registry/grant/")),
    "control-room-events": Screen(at("/admin/audit/event/?outcome=denied")),
    "control-room-keys": Screen(at("/admin/kms/key/")),
    "control-room-agent": Screen(row_of("registry/agent")),
    "control-room-grant": Screen(row_of("registry/grant")),
    "control-room-human": Screen(row_of("registry/human")),
    "control-room-key": Screen(row_of("kms/key")),
    "control-room-event": Screen(row_of("audit/event")),
    "control-room-provider": Screen(row_of("registry/serviceprovider")),
    "control-room-change": Screen(
        row_of("registry/serviceprovider", "Change audience or allow-list")
    ),
    "control-room-rotate": Screen(row_of("registry/serviceprovider", "Rotate secret")),
    "control-room-make": Screen(at("/admin/new-service-provider/")),
    "control-room-refused": Screen(refused_form),
    "control-room-made": Screen(made),
    "words": Screen(words),
    "words-confirmation": Screen(at("words-confirmation")),
    "words-inbox": Screen(at("/approvals/")),
    "catalogue": Screen(at("catalogue")),
    "control-room-catalogues": Screen(at("/admin/registry/catalogueversion/")),
    "control-room-catalogue": Screen(at("/admin/new-catalogue/")),
    "activity-wrong-log": Screen(wrong_log),
    "control-room-wrong-log": Screen(at("/admin/log/")),
    "approvers-empty": Screen(at("/approvers/")),
    "approvers": Screen(approvers),
    "approvers-wrong-amount": Screen(at("/approvers/?type=transact&amount=x"), frozenset({400})),
    "approval-others-decide": Screen(at("approval-others-decide")),
    "approval-for-another": Screen(at("approval-for-another")),
    "settings-absence": Screen(at("/settings/")),
    "hostile-approval": Screen(hostile_approval),
    "hostile-receipt": Screen(hostile_receipt),
    "hostile-claim": Screen(at("hostile-claim")),
    "hostile-confirmation": Screen(at("hostile-confirmation")),
    "hostile-event": Screen(at("hostile-event")),
    "hostile-settings": Screen(as_bob("/settings/")),
}
# On a registry of their own, since a restore ends every session and suspends every grant.
RESTORE_SCREENS = {
    "restore": Screen(at("restore")),
    "restore-signed": Screen(break_signed),
    "release": Screen(at("release")),
    "release-review": Screen(release_reviewed),
}
