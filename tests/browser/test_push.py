"""A push reaches the worker in a real browser, and leads to the page with nothing decided.

Chromium cannot subscribe here: it would ask its maker's push service. Doubles stand in for
`PushManager.subscribe`, for the push service (approvals/tests/push_service.py) and for the person
who presses a notification. The worker, its pushes and its notifications are real.
"""

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
from playwright.sync_api import Browser, CDPSession, Page, ViewportSize, Worker, expect

from approvals.tests.push_service import SubscribedBrowser, push_service
from tests.browser import steps
from tests.browser.conftest import add_authenticator
from tests.live import ROOT, LiveRegistry

pytestmark = [pytest.mark.browser, pytest.mark.flow]
READ = {"type": "read", "resource": "calendar"}
GENERIC = "Open AgentAuth to see what is waiting for you."
PHONE: ViewportSize = {"width": 390, "height": 844}
SECONDS = 30

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
    registry: LiveRegistry
    cdp: CDPSession
    registrations: list[dict[str, Any]] = field(default_factory=list)

    @property
    def worker(self) -> Worker:
        return self.page.context.service_workers[0]

    def push(self, data: str) -> None:
        """Chromium hands this to the worker, as if it came from its push service, decrypted."""
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

    def shown(self) -> list[dict[str, str]]:
        """The notifications, once there is one."""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            if found := self.worker.evaluate(SHOWN):
                return list(found)
            self.page.wait_for_timeout(100)
        raise AssertionError("the worker showed nothing")


@pytest.fixture(scope="module")
def phone(chromium: Browser, sqlite_registry: LiveRegistry) -> Iterator[Phone]:
    sqlite_registry.manage("load_demo")
    context = chromium.new_context(
        locale="en-GB", timezone_id="Europe/Berlin", viewport=PHONE, has_touch=True
    )
    context.set_default_timeout(10_000)
    context.grant_permissions(["notifications"], origin=sqlite_registry.url)
    page = context.new_page()
    add_authenticator(page)
    steps.become_admin(page, sqlite_registry)
    cdp = context.new_cdp_session(page)
    phone = Phone(page, sqlite_registry, cdp)
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
        browser.sender = page.locator("[name=sender]").input_value()
        page.evaluate(SUBSCRIBE, browser.fields)
        page.get_by_text("Get notifications in this browser").click()
        page.get_by_role("button", name="Switch on in this browser").click()
        expect(page.get_by_role("status")).to_contain_text("This browser is added")
        expect(page.get_by_role("heading", name="Chrome on Linux")).to_be_visible()
        yield browser


@contextlib.contextmanager
def jobs(registry: LiveRegistry) -> Iterator[None]:
    """The process that sends notifications."""
    command = [sys.executable, "manage.py", "jobs"]
    process = subprocess.Popen(command, cwd=ROOT, env=registry.env)
    yield
    process.send_signal(signal.SIGTERM)
    process.wait(SECONDS)


def test_AP_31_two_taps_lead_from_a_push_to_a_signed_decision(
    phone: Phone, subscribed: SubscribedBrowser
) -> None:
    """One on the notification, one on "Approve with passkey", while Alice is signed in."""
    page, agent = phone.page, steps.Agent(phone.registry)
    first = agent.request("demo-service", [READ])
    steps.claim(page, str(first["approval_url"]), str(first["claim_code"]))
    asked = agent.request("demo-service", [{"type": "read", "resource": "calendar/work"}])
    with jobs(phone.registry):
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline and len(subscribed.service.received) < 3:
            page.wait_for_timeout(200)
    messages = subscribed.messages(datetime.now(UTC))
    told = [each for each in messages if each["page"] == f"/approvals/{asked['grant_id']}/"]
    assert [each["text"] for each in told] == ["A request is waiting for your decision."]
    page.goto("about:blank")
    page.goto(phone.registry.url + "/agents/")
    phone.worker.evaluate(CLEAR)
    phone.push(json.dumps(told[0]))
    assert phone.shown() == [{"title": "AgentAuth", "body": told[0]["text"]}]
    opened = phone.worker.evaluate(PRESS)
    assert opened == f"{phone.registry.url}/approvals/{asked['grant_id']}/"
    page.goto(opened)
    assert agent.status(str(asked["grant_id"]))["status"] == "pending"
    steps.approve(page, second_step=False)
    assert agent.status(str(asked["grant_id"]))["status"] == "approved"


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
    ours = {"text": "Ours", "page": "/approvals/x/", "tag": "t", "until": time.time() + 60}
    phone.worker.evaluate(CLEAR)
    phone.push(changes if isinstance(changes, str) else json.dumps(ours | changes))
    assert phone.shown() == [{"title": "AgentAuth", "body": GENERIC}]
    assert phone.worker.evaluate(PRESS) == f"{phone.registry.url}/approvals/"


def test_the_same_push_again_shows_one_notification(
    phone: Phone, subscribed: SubscribedBrowser
) -> None:
    ours = {"text": "Ours", "page": "/approvals/x/", "tag": "t", "until": time.time() + 60}
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
    page.get_by_text("Change or remove").click()
    page.get_by_role("button", name="Remove Chrome on Linux").click()
    expect(page.get_by_role("status")).to_contain_text("Removed")
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
