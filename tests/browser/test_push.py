"""From a notification to a signed decision on a phone: by push, by mail, and what a worker shows.

Chromium cannot subscribe here: it would ask its maker's push service. Doubles stand in for
`PushManager.subscribe`, for the push service (approvals/tests/push_service.py) and for the person
who presses a notification. The worker, its pushes and its notifications are real.
"""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import (
    Browser,
    CDPSession,
    Error,
    Page,
    Playwright,
    ViewportSize,
    Worker,
    expect,
)

from approvals.tests.push_service import SubscribedBrowser, push_service
from approvals.tests.smtp_server import Mailbox, smtp_server
from tests.browser import steps
from tests.browser.backstage import BrowserRegistry
from tests.browser.conftest import PROGRAMS, add_authenticator, launched
from tests.browser.terminal import Terminal, approve_words
from tests.live import ROOT
from tests.time_limits import within

pytestmark = [pytest.mark.browser, pytest.mark.flow]
READ = {"type": "read", "resource": "calendar"}
WORK = {"type": "read", "resource": "calendar/work"}
GENERIC = "Open AgentAuth to see what is waiting for you."
PHONE: ViewportSize = {"width": 390, "height": 844}
# A hang, on a busy machine too.
SECONDS = 180
# Until a push is delivered again.
AGAIN_SECONDS = 5
# Of navigation and of what the page loads and asks: a person's own time is not counted.
PAGE_SECONDS = 5
SPENT = """Number(sessionStorage.getItem('spent')) +
  performance.getEntries().reduce((sum, each) => sum + (each.duration || 0), 0) / 1000"""
# Taps and seconds are added up over the pages that a decision leads through.
ADD_UP = f"""addEventListener('click', (e) => e.isTrusted && sessionStorage.setItem('taps',
  1 + Number(sessionStorage.getItem('taps'))), true);
addEventListener('pagehide', () => sessionStorage.setItem('spent', {SPENT}))"""
START_AT_ZERO = f"""['taps', 'spent'].forEach(each => sessionStorage.removeItem(each));
sessionStorage.setItem('spent', -({SPENT}))"""

# Stands in for the push service that Chromium would ask for a subscription.
SUBSCRIBE = """({endpoint, p256dh, auth}) => {
  const bytes = text => Uint8Array.from(atob(text.replace(/-/g, '+').replace(/_/g, '/')),
    c => c.charCodeAt(0)).buffer;
  const made = {endpoint, getKey: name => bytes({p256dh, auth}[name])};
  let subscription = null;
  PushManager.prototype.getSubscription = async () => subscription;
  PushManager.prototype.subscribe = async options => {
    if (!options.userVisibleOnly || options.applicationServerKey.length !== 65) throw TypeError();
    return subscription = made;
  };
}"""
# Stands in for the person who presses a notification, and for the window that opens.
PRESS = """async () => {
  const [notification] = await self.registration.getNotifications();
  let opened = null;
  Object.defineProperty(self.clients, 'openWindow', {
    configurable: true, value: async url => { opened = url; } });
  const event = Object.assign(new Event('notificationclick'), {notification, waitUntil: () => {}});
  self.dispatchEvent(event);
  return opened;
}"""
SHOWN = """async () => (await self.registration.getNotifications()).map(
  each => ({title: each.title, body: each.body}))"""
CLEAR = """async () => {
  const shown = () => self.registration.getNotifications();
  for (let found = await shown(); found.length; found = await shown()) {
    found.forEach(each => each.close());
    await new Promise(resolve => setTimeout(resolve, 50));
  }
}"""


@dataclass
class Phone:
    """Alice's browser, at the size of a phone, with the worker of our pages."""

    page: Page
    registry: BrowserRegistry
    cdp: CDPSession
    registrations: list[dict[str, Any]] = field(default_factory=list)
    # Signatures of the passkey: each is a touch of its owner.
    touched: list[Any] = field(default_factory=list)
    pushed: str = ""

    @property
    def worker(self) -> Worker:
        return self.page.context.service_workers[0]

    def push(self, data: str) -> None:
        """Chromium hands this to the worker, as if it came from its push service, decrypted."""
        self.pushed = data
        deadline = time.monotonic() + SECONDS
        while not self.registrations and time.monotonic() < deadline:
            self.page.wait_for_timeout(100)
        self.cdp.send(
            "ServiceWorker.deliverPushMessage",
            {
                "origin": self.registry.url,
                "registrationId": self.registrations[-1]["registrationId"],
                "data": data,
            },
        )

    def wait_until(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SECONDS
        while not holds():
            assert time.monotonic() < deadline, "it never arrived"
            self.page.wait_for_timeout(100)

    def shown(self) -> list[dict[str, str]]:
        """The notifications, once there is one.

        Chromium closes by tag, and late: closing an earlier notification can take this one along.
        Then the push is delivered again.
        """
        for _ in range(SECONDS // AGAIN_SECONDS):
            deadline = time.monotonic() + AGAIN_SECONDS
            while time.monotonic() < deadline:
                if found := self.worker.evaluate(SHOWN):
                    return list(found)
                self.page.wait_for_timeout(100)
            self.push(self.pushed)
        raise AssertionError("the worker showed nothing")


@pytest.fixture(scope="module")
def chromium(playwright: Playwright) -> Iterator[Browser]:
    """The headless shell has no push."""
    with launched(playwright, *PROGRAMS) as browser:
        yield browser


@pytest.fixture(scope="module")
def phone(chromium: Browser, own_registry: BrowserRegistry) -> Iterator[Phone]:
    own_registry.manage("load_demo")
    context = chromium.new_context(
        locale="en-GB", timezone_id="Europe/Berlin", viewport=PHONE, has_touch=True
    )
    context.set_default_timeout(steps.PATIENCE)
    context.grant_permissions(["notifications"], origin=own_registry.url)
    context.add_init_script(ADD_UP)
    page = context.new_page()
    cdp = context.new_cdp_session(page)
    add_authenticator(page, cdp)
    steps.become_admin(page, own_registry)
    phone = Phone(page, own_registry, cdp)
    cdp.on("WebAuthn.credentialAsserted", lambda event: phone.touched.extend([event]))
    cdp.on(
        "ServiceWorker.workerRegistrationUpdated",
        lambda event: phone.registrations.extend(event["registrations"]),
    )
    cdp.send("ServiceWorker.enable")
    yield phone
    context.close()


@pytest.fixture(scope="module")
def subscribed(phone: Phone) -> Iterator[SubscribedBrowser]:
    """Alice switched notifications on in her browser."""
    page = phone.page
    with push_service() as browser:
        page.goto(phone.registry.url + "/settings/")
        browser.application_server_key = page.locator("[name=sender]").input_value()
        page.evaluate(SUBSCRIBE, browser.fields)
        page.get_by_text("Get notifications in this browser").click()
        page.get_by_role("button", name="Switch on in this browser").click()
        expect(page.get_by_role("status")).to_contain_text("This browser is added")
        expect(page.get_by_role("heading", name="Chrome on Linux")).to_be_visible()
        yield browser


@pytest.fixture(scope="module")
def mailbox(phone: Phone, subscribed: SubscribedBrowser) -> Iterator[Mailbox]:
    """Alice gets e-mail too, and the process that sends notifications runs."""
    page = phone.page
    page.goto(phone.registry.url + "/settings/")
    page.get_by_text("Get e-mail").click()
    page.get_by_role("button", name="Switch e-mail on").click()
    expect(page.get_by_role("status")).to_contain_text("E-mail")
    with smtp_server() as box:
        mail = {"EMAIL_HOST": "127.0.0.1", "EMAIL_PORT": str(box.port), "EMAIL_TLS": "none"}
        command = [sys.executable, "manage.py", "jobs"]
        process = subprocess.Popen(command, cwd=ROOT, env=phone.registry.env | mail)
        yield box
        process.send_signal(signal.SIGTERM)
        process.wait(SECONDS)


def pushed(phone: Phone, subscribed: SubscribedBrowser, path: str) -> str:
    """The address that opens once Alice presses the notification about this page."""
    message: dict[str, Any] = {}

    def arrived() -> bool:
        told = [each for each in subscribed.messages(datetime.now(UTC)) if each["page"] == path]
        message.update(*told[-1:])
        return bool(told)

    phone.wait_until(arrived)
    phone.page.goto(phone.registry.url + "/agents/")
    phone.worker.evaluate(CLEAR)
    phone.push(json.dumps(message))
    assert phone.shown() == [{"title": "AgentAuth", "body": message["text"]}]
    return str(phone.worker.evaluate(PRESS))


def mailed(phone: Phone, mailbox: Mailbox, path: str) -> str:
    """The address in the mail about this page."""
    link = f"{phone.registry.url}{path}"
    phone.wait_until(lambda: any(link in text.splitlines() for _, text in list(mailbox.mails)))
    phone.page.goto(phone.registry.url + "/agents/")
    return link


def decide(phone: Phone, url: str, *presses: str, said: str) -> int:
    """Open the address, read, tap these buttons; returns the taps, passkeys among them.

    The page itself, all that it loads and asks included, may take five seconds.
    """
    page = phone.page
    page.evaluate(START_AT_ZERO)
    phone.touched.clear()
    page.goto(url)
    for name in presses:
        button = page.get_by_role("button", name=name)
        expect(button).to_be_visible()
        if name in {"Approve with passkey", "Confirm with passkey"}:
            steps.read(page)
        if name != presses[-1]:
            button.tap()
            continue
        # The next page says what this one says just before it goes.
        with page.expect_navigation():
            button.tap()
    expect(page.get_by_role("status")).to_contain_text(said)
    taps, seconds = evaluate(page, f"[Number(sessionStorage.getItem('taps')), {SPENT}]")
    assert seconds < within(PAGE_SECONDS)
    return int(taps) + len(phone.touched)


def evaluate(page: Page, script: str) -> Any:
    """The script's value, asked again where the page just then reloaded to show a change."""
    try:
        return page.evaluate(script)
    except Error as error:
        if "because of a navigation" not in str(error):
            raise
        return page.evaluate(script)


def claimed(phone: Phone) -> steps.Agent:
    """An agent of Alice."""
    agent = steps.Agent(phone.registry)
    first = agent.request("demo-service", [READ])
    steps.claim(phone.page, str(first["approval_url"]), str(first["claim_code"]))
    return agent


def test_AP_31_two_taps_lead_from_a_push_to_a_signed_decision(
    phone: Phone, subscribed: SubscribedBrowser, mailbox: Mailbox
) -> None:
    """The notification opens the page and decides nothing; then the button, and the passkey."""
    agent = claimed(phone)
    grant = str(agent.request("demo-service", [WORK])["grant_id"])
    opened = pushed(phone, subscribed, f"/approvals/{grant}/")
    assert opened == f"{phone.registry.url}/approvals/{grant}/"
    assert agent.status(grant)["status"] == "pending"
    assert decide(phone, opened, "Approve with passkey", said="Approved") == 2
    assert agent.status(grant)["status"] == "approved"


def test_AP_31_the_link_in_a_mail_takes_two_taps_and_a_sign_in_two_more(
    phone: Phone, mailbox: Mailbox
) -> None:
    agent = claimed(phone)
    asked = [WORK, {"type": "read", "resource": "calendar/home"}]
    first, second = (str(agent.request("demo-service", [e])["grant_id"]) for e in asked)
    link = mailed(phone, mailbox, f"/approvals/{first}/")
    assert decide(phone, link, "Approve with passkey", said="Approved") == 2
    link = mailed(phone, mailbox, f"/approvals/{second}/")
    steps.sign_out(phone.page)
    # Signed out, the link leads to the sign-in and from there to the same page.
    presses = ("Sign in with passkey", "Approve with passkey")
    assert decide(phone, link, *presses, said="Approved") == 4
    assert [agent.status(each)["status"] for each in (first, second)] == ["approved"] * 2


@pytest.mark.long
def test_the_demo_from_end_to_end_by_push_and_mail_on_a_phone(
    phone: Phone, subscribed: SubscribedBrowser, mailbox: Mailbox
) -> None:
    page, terminal = phone.page, Terminal(phone.registry)
    try:
        approve_words(page, terminal)
        link, code = (
            terminal.wait_for(rf"{name}: (\S+)") for name in ("Approve here", "Claim code")
        )
        steps.claim(page, link, code)
        expect(page.get_by_role("heading", name=re.compile("Research Assistant"))).to_be_visible()
        expect(page.get_by_text("Pays a supplier up to €100.00").last).to_be_visible()
        path = urlsplit(page.url).path
        presses = ("Approve with passkey", "Continue")
        # It asks to pay, so a second step repeats that.
        assert decide(phone, pushed(phone, subscribed, path), *presses, said="Approved") == 3
        terminal.wait_for(r"✓ read calendar/work")
        terminal.wait_for(r"✗ send the same request again.*replayed")
        terminal.wait_for(r"✗ read files/reports.*no_capability")
        terminal.wait_for(r"✓ pay 20.00 EUR")
        terminal.wait_for(r"✗ pay 80.00 EUR.*confirm_above")
        path = urlsplit(terminal.wait_for(r"Confirm here: (\S+)")).path
        link = mailed(phone, mailbox, path)
        assert decide(phone, link, "Confirm with passkey", said="Confirmed") == 2
        terminal.wait_for(r"✓ pay 80.00 EUR to ACME, confirmed")
        terminal.wait_for(r"✗ pay the same 80.00 EUR once more.*already_processed")
        terminal.wait_for(r"✗ pay 30.00 EUR.*budget")
        page.goto(terminal.wait_for(r"Revoke here: (\S+)"))
        page.get_by_role("link", name="Revoke grant").click()
        page.get_by_role("button", name="Revoke for good").click()
        expect(page.get_by_role("status")).to_contain_text("Revoked")
        terminal.wait_for(r"✗ read calendar/work after that.*invalid_token")
        terminal.wait_for(r"Every answer was the one the grant calls for")
        assert terminal.process.wait(SECONDS) == 0
    finally:
        terminal.close()
    phone.registry.manage("seal_audit")
    assert phone.registry.manage("verify_audit")["ok"]


OURS = {"text": "Ours", "page": "/approvals/x/", "tag": "t"}
# Seconds. A push that arrives after its end shows the general text, whatever is in it.
ENDLESS = 3_600
GARBAGE = {
    "nothing": "",
    "no JSON": "garbage",
    "no object": "null",
    "markup": "<img src=x onerror=alert(1)>",
    "another site": {"page": "https://evil.example/approvals/"},
    "another host": {"page": "//evil.example/"},
    "a script": {"page": "javascript:alert(1)"},
    "another folder": {"page": "/approvals/../sign-out/"},
    "a query": {"page": "/sign-in/?next=/approvals/"},
    "a list for a page": {"page": ["/approvals/"]},
    "a number for a text": {"text": 7},
    "no tag": {"tag": None},
    "a replay after the end": {"until": 1},
    "no end": {"until": "soon"},
}


@pytest.mark.parametrize("changes", GARBAGE.values(), ids=GARBAGE)
def test_a_push_that_is_not_ours_shows_the_general_text(
    changes: str | dict[str, Any], phone: Phone, subscribed: SubscribedBrowser
) -> None:
    ours = OURS | {"until": time.time() + ENDLESS}
    phone.worker.evaluate(CLEAR)
    phone.push(changes if isinstance(changes, str) else json.dumps(ours | changes))
    assert phone.shown() == [{"title": "AgentAuth", "body": GENERIC}]
    assert phone.worker.evaluate(PRESS) == f"{phone.registry.url}/approvals/"


def test_the_same_push_again_shows_one_notification(
    phone: Phone, subscribed: SubscribedBrowser
) -> None:
    ours = OURS | {"until": time.time() + ENDLESS}
    phone.worker.evaluate(CLEAR)
    for _ in range(2):
        phone.push(json.dumps(ours))
    phone.page.wait_for_timeout(500)
    assert phone.shown() == [{"title": "AgentAuth", "body": "Ours"}]


def test_the_worker_handles_pushes_alone_and_controls_no_page(
    phone: Phone, subscribed: SubscribedBrowser
) -> None:
    page = phone.page
    page.goto(phone.registry.url + "/settings/")
    assert page.evaluate("navigator.serviceWorker.controller") is None
    assert page.evaluate("caches.keys()") == []
    source = (ROOT / "static/push-worker.js").read_text()
    assert source.count("addEventListener(") == 2
    assert phone.registrations[-1]["scopeURL"] == f"{phone.registry.url}/static/"


def test_the_pages_can_be_installed(phone: Phone) -> None:
    phone.page.goto(phone.registry.url + "/approvals/")
    answer = phone.cdp.send("Page.getAppManifest")
    assert answer["errors"] == []
    assert answer["url"] == f"{phone.registry.url}/static/manifest.json"
    errors = phone.cdp.send("Page.getInstallabilityErrors")["installabilityErrors"]
    # A context of a test is like an incognito window, in which nothing is installed.
    assert [each["errorId"] for each in errors] == ["in-incognito"]


def test_the_browser_in_the_list_is_marked_and_can_be_removed(
    phone: Phone, subscribed: SubscribedBrowser
) -> None:
    page = phone.page
    page.context.add_init_script(
        "PushManager.prototype.getSubscription = async () => "
        f"({{endpoint: {json.dumps(subscribed.service.url)}}})"
    )
    page.goto(phone.registry.url + "/settings/")
    expect(page.get_by_text("this browser", exact=True)).to_be_visible()
    expect(page.get_by_text("Get notifications in this browser")).to_be_hidden()
    mine = page.get_by_role("listitem").filter(has=page.get_by_role("heading", name="Chrome"))
    mine.get_by_text("Change or remove").click()
    page.get_by_role("button", name="Remove Chrome on Linux").click()
    expect(page.get_by_role("status")).to_contain_text("Channel removed")
    expect(page.get_by_role("heading", name="Chrome on Linux")).to_have_count(0)


def test_a_browser_that_blocks_notifications_says_what_to_do(
    chromium: Browser, phone: Phone
) -> None:
    page = phone.page
    page.goto(phone.registry.url + "/settings/")
    page.evaluate("Notification.requestPermission = async () => 'denied'")
    page.evaluate("PushManager.prototype.getSubscription = async () => null")
    page.get_by_text("Get notifications in this browser").click()
    page.get_by_role("button", name="Switch on in this browser").click()
    expect(page.get_by_role("alert")).to_contain_text("Allow them in the settings")
