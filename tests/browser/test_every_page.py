"""Every page and state, of people and administrators: axe, widths, schemes, languages, keyboard.

The URL table says which pages there are (tests/endpoints.py): one that no screen shows fails.
`--screenshots` (`make screenshots`) also keeps pictures, at 390 and 1440 px, light and dark, in
screenshots/.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.urls import resolve
from playwright.sync_api import Browser, BrowserContext, CDPSession, Page, ViewportSize, expect

from tests.browser import steps
from tests.browser.backstage import BrowserRegistry
from tests.browser.conftest import add_authenticator
from tests.browser.hostile_stage import PERSON
from tests.browser.looking import PHONE, SCHEMES, WIDTHS, Heard, look, overflow, step, walk
from tests.browser.screens import RESTORE_SCREENS, SCREENS, Screen
from tests.browser.ways import Theatre, at, row_of
from tests.conftest import CAMPAIGN
from tests.endpoints import address, pages
from tests.live import ROOT

pytestmark = [pytest.mark.browser, pytest.mark.flow]
PICTURES = ROOT / "screenshots"
PICTURED = (1440, PHONE)
# What a page answers once a later screen has ended or resumed what it was about.
ENDED = frozenset({404, 409})
# Lists that no scene fills. Their rows have the same template as all others.
EMPTY = {"kms/keycertificate", "audit/segment", "audit/cosignature", "audit/checkpointcopy"}
DESK: ViewportSize = {"width": 1440, "height": WIDTHS[1440]}


@dataclass
class Tour:
    """The pages seen so far: who saw them where, and with which answer."""

    theatre: Theatre
    heard: Heard
    keep: bool
    # (person, address) → the statuses that a screen expects on its way there.
    seen: dict[tuple[str, str], frozenset[int]] = field(default_factory=dict)
    # Names of parameters → values, from the addresses.
    ids: dict[str, str] = field(default_factory=dict)
    routes: set[str] = field(default_factory=set)
    keys: dict[str, CDPSession] = field(default_factory=dict)

    def person(self, page: Page) -> str:
        every = vars(self.theatre)
        return next(name for name, each in every.items() if each is page)

    def visit(self, name: str, screen: Screen) -> list[str]:
        """Everything wrong with this screen in English; notes where it was."""
        page = screen.way(self.theatre)
        # What a way waits for may be on the page before its scripts have run.
        page.wait_for_load_state()
        path = page.url.removeprefix(self.theatre.registry.url)
        match = resolve(urlsplit(path).path)
        route = f"/{match.route}"
        # Not what answers a form: its address is not one to open.
        is_page = route in pages()
        # Tables of the control room have hundreds of controls: too many to press Tab for each.
        is_new = is_page and route not in self.routes and not route.startswith("/admin/")
        self.note(path, match)
        if is_page:
            self.seen.setdefault((self.person(page), path), screen.answers)
        faults = [*look(page, scripts=screen.runs_scripts)]
        if screen.runs_scripts:
            by_tab = is_new or not screen.whole
            faults += (walk if by_tab else step)(page, self.session(page))
        if self.keep:
            pictures(page, name, whole=screen.whole)
        return self.told(name, page, screen.answers, faults)

    def visit_in_german(self, person: str, path: str, answers: frozenset[int]) -> list[str]:
        """Its layout where it is narrowest; axe has seen the same elements in English."""
        page: Page = getattr(self.theatre, person)
        answer = page.goto(self.theatre.registry.url + path)
        assert answer is not None
        if answer.status in ENDED - answers:
            self.heard.unexpected(())
            return []
        faults = overflow(page, min(WIDTHS))
        if page.locator("html").get_attribute("lang") != "de":
            faults.append("not in German")
        return self.told(f"de {path}", page, answers, faults)

    def note(self, path: str, match: Any) -> None:
        self.routes.add("/" + re.sub(r"\^|\$", "", match.route))
        self.ids |= {name: str(value) for name, value in match.kwargs.items()}

    def session(self, page: Page) -> CDPSession:
        person = self.person(page)
        if person not in self.keys:
            self.keys[person] = page.context.new_cdp_session(page)
        return self.keys[person]

    def told(self, name: str, page: Page, answers: frozenset[int], faults: list[str]) -> list[str]:
        page.set_viewport_size(DESK)
        return [f"{name}: {each}" for each in faults + self.heard.unexpected(answers)]


def pictures(page: Page, name: str, *, whole: bool) -> None:
    for scheme in SCHEMES:
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        for width in PICTURED:
            page.set_viewport_size({"width": width, "height": WIDTHS[width]})
            page.screenshot(path=PICTURES / f"{name}-{width}-{scheme}.png", full_page=whole)


@pytest.fixture(scope="module")
def enter(chromium: Browser) -> Iterator[Callable[..., Page]]:
    """Opens a page in a new context, which lives as long as the module's tests."""
    contexts: list[BrowserContext] = []

    def entered(**options: object) -> Page:
        context = chromium.new_context(
            locale="en-GB",
            timezone_id="Europe/Berlin",
            viewport=DESK,
            **options,  # type: ignore[arg-type]
        )
        context.set_default_timeout(steps.PATIENCE)
        contexts.append(context)
        return context.new_page()

    yield entered
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def theatre(enter: Callable[..., Page], own_registry: BrowserRegistry) -> Theatre:
    alice, bob = enter(), enter()
    for page in (alice, bob):
        add_authenticator(page)
    steps.become_admin(alice, own_registry)
    steps.be_invited(bob, own_registry, name=PERSON, email="bob@example.org")
    paths = own_registry.stage("set_up", "alice@example.org")
    session = alice.context.storage_state()
    keyless = enter(storage_state=session)
    keyless.add_init_script("delete window.PublicKeyCredential")
    scriptless = enter(storage_state=session, java_script_enabled=False)
    return Theatre(own_registry, paths, alice, bob, enter(), scriptless, keyless)


@pytest.fixture(scope="module")
def tour(theatre: Theatre, request: pytest.FixtureRequest) -> Tour:
    return begun(theatre, request)


def begun(theatre: Theatre, request: pytest.FixtureRequest) -> Tour:
    heard = Heard(theatre.registry.url)
    for page in {
        id(each): each for each in vars(theatre).values() if isinstance(each, Page)
    }.values():
        heard.listen(page)
    return Tour(theatre, heard, request.config.getoption("--screenshots"))


@pytest.fixture(scope="module")
def restored(
    enter: Callable[..., Page],
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Iterator[Tour]:
    """A registry restored from a backup; Alice has signed in again."""
    folder = tmp_path_factory.mktemp("restored")
    outside = {"AUDIT_STORE": f"file:{folder / 'outside'}"}
    registry = BrowserRegistry(folder, workers=1, env=outside)
    try:
        alice = enter()
        add_authenticator(alice)
        steps.become_admin(alice, registry)
        registry.stage("set_up", "alice@example.org")
        paths = registry.stage("restore", "alice@example.org")
        steps.sign_in(alice, registry)
        yield begun(Theatre(registry, paths, alice, *[alice] * 4), request)
    finally:
        registry.stop()


@pytest.mark.parametrize("name", SCREENS)
def test_screen(name: str, tour: Tour) -> None:
    assert not tour.visit(name, SCREENS[name])


@pytest.mark.parametrize("name", RESTORE_SCREENS)
def test_screen_after_a_restore(name: str, restored: Tour) -> None:
    assert not restored.visit(name, RESTORE_SCREENS[name])


def test_every_page_of_the_url_table_is_seen(tour: Tour, restored: Tour) -> None:
    """What no screen shows is opened here, if its address is known; else it needs a screen."""
    faults = []
    for route in sorted(pages() - tour.routes - restored.routes):
        rows = re.fullmatch(r"/admin/(\w+/\w+)/<path:object_id>/change/", route)
        if rows and rows[1] in EMPTY:
            tour.routes.add(route)
            continue
        way = row_of(rows[1]) if rows else at(address(route, tour.ids))
        faults += tour.visit(route.strip("/").replace("/", "-"), Screen(way))
    assert not faults
    assert not pages() - tour.routes - restored.routes


def test_a_page_that_the_keyboard_cannot_use_has_faults(tour: Tour) -> None:
    """One fault of each kind that `step` looks for, in the control room."""
    page = tour.theatre.open(tour.theatre.alice, "/admin/")
    assert not step(page, tour.session(page))
    page.evaluate(
        """() => {
          const sheet = new CSSStyleSheet();
          sheet.replaceSync(`#logout-form :focus-visible { outline: 0 }
            .room ul.links { display: flex; flex-flow: column-reverse }
            .bar { position: fixed; inset: 90% 0 0 0; background: red }
            body { padding-block-end: 50vh }`);
          document.adoptedStyleSheets = [sheet];
          document.querySelector('#site-name a').tabIndex = 1;
          document.body.append(Object.assign(document.createElement('div'), {className: 'bar'}));
        }"""
    )
    faults = step(page, tour.session(page))
    for each in ("positive tabindex: <a", "on screen before <a", 'focus behind <div class="bar"'):
        assert any(fault.startswith(each) for fault in faults), each
    assert 'focus unseen: <button type="submit">Sign out</button>' in faults


def test_pages_are_seen_in_german(tour: Tour, restored: Tour) -> None:
    """The addresses of the screens again, one of three in CI. German words are long, so layouts
    differ.
    """
    faults, stride = [], 1 if CAMPAIGN or tour.keep else 3
    for each, people in ((tour, ("alice", "bob", "visitor")), (restored, ("alice",))):
        for person in people:
            page = each.theatre.open(getattr(each.theatre, person), "/")
            steps.follow(page, page.get_by_role("button", name="Deutsch"))
            expect(page.locator("html")).to_have_attribute("lang", "de")
        for (person, path), answers in list(each.seen.items())[::stride]:
            if person in people:
                faults += each.visit_in_german(person, path, answers)
    assert not faults


def test_set_up_takes_zone_and_language_of_the_browser(
    chromium: Browser, own_registry: BrowserRegistry
) -> None:
    context = chromium.new_context(locale="de-CH", timezone_id="Pacific/Auckland")
    context.set_default_timeout(steps.PATIENCE)
    page = context.new_page()
    add_authenticator(page)
    page.goto(own_registry.manage("setup_link", "--email", "eva@example.org")["url"])
    page.get_by_role("textbox", name="Ihr Name").fill("Eva")
    page.get_by_role("button", name="Passkey erstellen").click()
    expect(page.get_by_text("Zeiten in der Zeitzone Pacific/Auckland.")).to_be_visible()
    context.close()


def test_a_language_chosen_elsewhere_stops_the_signature_and_keeps_the_fields(
    tour: Tour,
) -> None:
    """Alice chose German above."""
    page = tour.theatre.open(tour.theatre.alice, "many")
    page.get_by_role("textbox", name="Höchstbetrag").fill("40,00")
    other = page.context.new_page()
    tour.theatre.open(other, "/settings/")
    other.get_by_role("button", name="English").click()
    expect(other.locator("html")).to_have_attribute("lang", "en-gb")
    steps.read(page)
    page.get_by_role("button", name="Mit Passkey genehmigen").click()
    expect(page.get_by_role("alert")).to_contain_text("You chose another language")
    expect(page.get_by_role("textbox", name="Höchstbetrag")).to_have_value("40,00")
    # Closed at once, the page might never have asked.
    steps.follow(other, other.get_by_role("button", name="Deutsch"))
    other.close()


def has_motion(page: Page) -> bool:
    """Whether anything on the page moves by itself or on a change."""
    moves: bool = page.evaluate(
        """() => [...document.querySelectorAll('*')].some((each) =>
          ['', '::before', '::after'].some((part) => {
            const style = getComputedStyle(each, part);
            return style.transitionDuration.split(', ').some((time) => parseFloat(time)) ||
              (style.animationName !== 'none' && parseFloat(style.animationDuration));
          }))"""
    )
    return moves


def test_nothing_moves_for_people_who_ask_for_that(tour: Tour) -> None:
    page = tour.theatre.open(tour.theatre.alice, "/components/")
    page.emulate_media(reduced_motion="no-preference")
    assert has_motion(page)
    page.emulate_media(reduced_motion="reduce")
    assert not has_motion(page)
