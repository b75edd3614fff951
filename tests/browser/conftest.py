"""Real Chromium with a virtual authenticator: its passkey verifies the user."""

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import pytest
from playwright.sync_api import Browser, CDPSession, Page, Playwright, sync_playwright

from tests.browser import steps
from tests.browser.backstage import BrowserRegistry

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# The whole browser, by what the distributions call it.
PROGRAMS = ("chromium", "chromium-browser")
ALICE = "alice@example.org"
AUTHENTICATOR = {
    "protocol": "ctap2",
    "transport": "internal",
    "hasResidentKey": True,
    "hasUserVerification": True,
    "isUserVerified": True,
    "automaticPresenceSimulation": True,
}


@pytest.fixture(scope="session")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as found:
        yield found


@pytest.fixture(scope="session")
def chromium(playwright: Playwright) -> Iterator[Browser]:
    """Without a window system, if it is there: the same engine for a quarter less CPU."""
    with launched(playwright, "chromium-headless-shell", *PROGRAMS) as browser:
        yield browser


@contextlib.contextmanager
def launched(playwright: Playwright, *programs: str) -> Iterator[Browser]:
    """The first of these programs that is installed."""
    path = next(filter(None, map(shutil.which, programs)), None)
    browser = playwright.chromium.launch(
        executable_path=path, args=FLAGS, timeout=3 * steps.PATIENCE
    )
    yield browser
    browser.close()


def add_authenticator(
    page: Page, session: CDPSession | None = None, transport: str = "internal"
) -> str:
    """Add a virtual authenticator to the page's target; returns its id. One may be `internal`."""
    session = session or page.context.new_cdp_session(page)
    session.send("WebAuthn.enable")
    answer = session.send(
        "WebAuthn.addVirtualAuthenticator", {"options": AUTHENTICATOR | {"transport": transport}}
    )
    return str(answer["authenticatorId"])


@dataclass
class Device:
    """A browser and its authenticator."""

    page: Page
    session: CDPSession
    authenticator: str

    @classmethod
    def opened(cls, chromium: Browser, **options: object) -> Self:
        context = chromium.new_context(locale="en-GB", timezone_id="Europe/Berlin", **options)  # type: ignore[arg-type]
        context.set_default_timeout(steps.PATIENCE)
        page = context.new_page()
        session = context.new_cdp_session(page)
        return cls(page, session, add_authenticator(page, session))

    def take_passkeys(self, other: "Device") -> None:
        """As a provider syncs the passkeys of one device to another, with their counters."""
        mine = {"authenticatorId": self.authenticator}
        self.session.send("WebAuthn.clearCredentials", mine)
        found = other.session.send(
            "WebAuthn.getCredentials", {"authenticatorId": other.authenticator}
        )
        for credential in found["credentials"]:
            body = {"authenticatorId": self.authenticator, "credential": credential}
            self.session.send("WebAuthn.addCredential", body)


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrowserRegistry]:
    """One for all modules, with the demo's service: starting one takes as long as ten tests.

    Each module has people of its own.
    """
    registry = BrowserRegistry(tmp_path_factory.mktemp("registry"))
    registry.manage("load_demo")
    yield registry
    registry.stop()


@pytest.fixture(scope="module")
def own_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrowserRegistry]:
    """A module's own, for tests that change or look at everything."""
    registry = BrowserRegistry(tmp_path_factory.mktemp("registry"))
    yield registry
    registry.stop()


@pytest.fixture(scope="session")
def desk(chromium: Browser, registry: BrowserRegistry) -> Iterator[Device]:
    """Alice's, who is an administrator and owns the agents of `scenes`."""
    device = Device.opened(chromium)
    steps.be_invited(device.page, registry, name="Alice Martin", email=ALICE, admin=True)
    yield device
    device.page.context.close()


@pytest.fixture(scope="session")
def scenes(desk: Device, registry: BrowserRegistry) -> dict[str, str]:
    """Addresses by name: everything a person may meet (tests/browser/stage.py)."""
    assert desk.page
    return {name: registry.url + path for name, path in registry.stage("set_up", ALICE).items()}
