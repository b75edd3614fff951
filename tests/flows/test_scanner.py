"""Link scanners, previews and prefetching browsers: opening an address changes nothing.

Every row is compared with its state before: the test has its own database, and the application runs
in this process.
"""

from collections.abc import Iterator
from datetime import datetime
from html.parser import HTMLParser
from typing import Any

import pytest
from django.apps import apps
from django.contrib.sessions.models import Session
from django.test import Client

from approvals.admin_site import site
from approvals.models import Passkey
from approvals.services.setup_and_sign_in import create_setup_link
from approvals.tests.cast import PAY, Person, browser, invited, waiting_confirmation
from approvals.tests.recovering import begun, ready_link
from audit.models import Event
from kms.services import ensure_key
from registry.models import Human, ServiceProvider
from registry.services.humans import create_human
from registry.tests.cast import TESTER, AgentClient, approve, claim_link, enrolled, pending
from registry.tests.describing import proposed
from tests.endpoints import FOR_PROGRAMS, ROUTES, address
from tests.rows import read

pytestmark = [pytest.mark.django_db, pytest.mark.sweep]

# Written for a refused request: its event and what belongs to it. No other table may change.
LOG = {"audit.event", "audit.opening", "audit.queueentry", "audit.refusalcount"}


@pytest.fixture
def admin(db: None, now: datetime) -> Person:
    for purpose in ("token", "receipt"):
        ensure_key(purpose=purpose, actor=TESTER, now=now)
    return invited("ada@a.example", "Ada", now=now, is_staff=True)


@pytest.fixture
def links(admin: Person, service_provider: ServiceProvider, now: datetime) -> list[str]:
    """Every address, with live ids and secrets, for each grant state and setup link."""
    human = admin.human
    agent = enrolled(human, now=now)
    grants = [
        pending(
            agent,
            service_provider,
            now=now,
            capabilities=[{"type": "read", "resource": f"calendar/{each}"}],
        )
        for each in ("a", "b", "c")
    ]
    paying = approve(pending(agent, service_provider, now=now, capabilities=[PAY]), human, now=now)
    assert admin.approve(grants[1]).status_code == 200
    assert admin.deny(grants[2]).status_code == 200
    confirmation = waiting_confirmation(paying, now)
    stray = AgentClient()
    stray.register(manifest=stray.manifest(name="Stray"))
    lost = create_human(email="lost@a.example", name="Lost", actor=TESTER, now=now)
    setups = [
        create_setup_link(email="new@a.example", actor=TESTER, now=now).url,
        ready_link(lost, now).url,
    ]
    ids = {
        "agent_id": str(agent.agent().pk),
        "passkey_id": str(Passkey.objects.get(human=human).pk),
        "confirmation_id": str(confirmation.pk),
        "human_id": str(lost.pk),
        "recovery_id": str(begun(human, now).pk),
        "secret": claim_link(stray.agent())[0].split("/")[-2],
        "reference": service_provider.slug,
        "catalogue_id": str(proposed(service_provider, now).pk),
    }
    found = {
        address(route, ids | {"grant_id": str(grant.pk), "code": url.split("/")[-2]})
        for route in ROUTES
        for grant in grants
        for url in setups
    }
    for model in site._registry:
        base = f"/admin/{model._meta.app_label}/{model._meta.model_name}/"
        row = model._default_manager.first()
        if row is not None:
            found |= {f"{base}{row.pk}/{act}/" for act in ("change", "delete", "history")}
    return sorted(found)


def batched(paths: list[str], size: int) -> Iterator[list[str]]:
    return (paths[first : first + size] for first in range(0, len(paths), size))


def rows() -> dict[str, list[str]]:
    """Every row of every table; of a session without its expiry, which a page view may extend."""
    tables = [model for model in apps.get_models() if model._meta.label_lower not in LOG]
    return read({model: ["pk"] if model is Session else [] for model in tables})


@pytest.mark.parametrize("visitor", ["signed in", "a stranger", "a scanner from elsewhere"])
def test_AP_31_opening_every_address_changes_nothing(
    visitor: str, admin: Person, links: list[str], now: datetime
) -> None:
    client = {
        "signed in": admin.client,
        "a stranger": browser(),
        "a scanner from elsewhere": Client(
            SERVER_NAME="localhost", SERVER_PORT="8000", headers={"Sec-Fetch-Site": "cross-site"}
        ),
    }[visitor]
    before, seen = rows(), set(Event.objects.values_list("pk", flat=True))
    # Reading all rows takes longer than opening an address, so compare a few addresses at a time.
    for paths in batched(links, 20):
        for path in paths:
            for method in ("GET", "HEAD"):
                answer = client.generic(method, path, headers={"Accept": "text/html"})
                assert answer.status_code < 500, path
        assert rows() == before, paths
    written = Event.objects.exclude(pk__in=seen)
    # A link that cannot be opened is refused, and the refusal is recorded (U4).
    assert {event.kind for event in written} <= {"audit.request.refused"}


def test_AP_31_a_page_answers_head_as_get(admin: Person, links: list[str]) -> None:
    """Many scanners send HEAD first: a valid link must not look broken."""
    pages = 0
    for client in (admin.client, browser()):
        for path in links:
            if path.startswith(FOR_PROGRAMS):
                continue
            got, head = client.get(path), client.head(path)
            assert (head.status_code, head.getvalue()) == (got.status_code, b""), path
            assert head.get("Location") == got.get("Location"), path
            pages += got.status_code == 200
    assert pages > 25
    for path in ("/health/live", "/.well-known/agentauth", "/docs/"):
        assert browser().head(path).status_code == 200


class Forms(HTMLParser):
    """The forms of a page: their method and target."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[dict[str, str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "form":
            self.found.append({name: value or "" for name, value in attrs})


def forms(client: Client, paths: list[str]) -> Iterator[tuple[str, dict[str, str]]]:
    for path in paths:
        answer: Any = client.get(path, headers={"Accept": "text/html"})
        if answer.status_code == 200 and "html" in answer["Content-Type"]:
            for each in Forms(answer.content.decode()).found:
                yield path, each


# Pages with a search of their own.
SEARCHED = {"/recoveries/", "/activity/", "/approvers/"}


def test_AP_31_no_form_acts_by_get(admin: Person, links: list[str]) -> None:
    """Nor without its script, when a form without a method puts its fields into the address."""
    found = [*forms(admin.client, links), *forms(browser(), links)]
    assert len(found) > 40
    for path, form in found:
        by_get = form.get("method", "get").lower() == "get"
        searches = (form.get("id"), path.split("/")[1]) == ("changelist-search", "admin") or (
            form.get("role") == "search" and path.partition("?")[0] in SEARCHED
        )
        assert not by_get or searches, (path, form)


def test_AP_31_the_links_still_work_after_a_scanner(
    admin: Person, links: list[str], now: datetime
) -> None:
    setup = create_setup_link(email="late@a.example", actor=TESTER, now=now).url
    for _ in range(20):
        browser().get(setup.removeprefix("http://localhost:8000"))
    person = Person()
    assert person.set_up(setup, name="Late", email="late@a.example").status_code == 200
    assert Human.objects.filter(email="late@a.example").exists()
