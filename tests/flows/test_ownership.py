"""Every address that names something, asked by others than its owner: the answer of an unknown id.

Every row is compared with its state before: the test has its own database, and the application runs
in this process.
"""

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.core import signing
from pytest_django.plugin import DjangoDbBlocker

from approvals.models import HumanSession, Passkey
from approvals.tests.cast import Person, browser, registered, signed_in
from approvals.tests.notifying import by_mail
from audit.kinds import CONFIRMATION_REQUESTED
from audit.models import Event
from kms.services import ensure_key
from registry.models import Agent, Grant, ServiceProvider
from registry.services.approvers import set_absence
from registry.services.service_providers import create_service_provider
from registry.tests.cast import (
    PAY,
    READ_CALENDAR,
    TESTER,
    AgentClient,
    approved,
    basic,
    enrolled,
    issue,
    pending,
)
from registry.tests.describing import proposed
from tests.endpoints import ENDPOINTS, address
from tests.flows.test_sweep import refused_shape
from tests.rows import rows, rows_of_a_module
from verifier.models import Confirmation

pytestmark = [pytest.mark.django_db, pytest.mark.sweep]


@pytest.fixture(autouse=True)
def _each_refusal_is_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test causes more refusals than an outsider may have recorded in a minute."""
    monkeypatch.setattr("audit.log.refusal_counts.RECORDED_PER_MINUTE", 1000)


METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
# What each URL parameter names. A new parameter must be listed here, and so enters the sweep.
OWNED = {
    "grant_id",
    "agent_id",
    "confirmation_id",
    "passkey_id",
    "event_id",
    "channel_id",
    "session_id",
    "absence_id",
}
SECRETS = {"code", "secret"}
KNOWN_TO_ALL_AGENTS = {"reference"}
# `shown` is the fingerprint of what a page showed, and opens nothing. `digest` is that of a logo,
# which every signed-in person may see.
OPEN_TO_ALL = {"level", "tile", "shown", "digest"}
# On staff pages with tests of their own (approvals/tests/test_continue_after_restore.py,
# test_resuming.py, test_denials.py, test_destructive_actions.py,
# test_recovery_administrators.py, test_approver_pages.py, test_logos.py). The account's owner may
# cancel a recovery too (test_recovery.py).
STAFF_ONLY = {
    "name": ("/restores/",),
    "kind": ("/resume/", "/endings/"),
    "row_id": ("/resume/",),
    "request_id": ("/denials/",),
    "catalogue_id": ("/catalogues/",),
    "human_id": ("/recoveries/", "/admin/humans/"),
    "recovery_id": ("/recoveries/", "/recovery/"),
    **dict.fromkeys(("group_id", "member_id", "rule_id", "away_id", "other_id"), ("/approvers/",)),
}
ADMIN_ONLY = {"service_provider_id", "object_id", "content_type_id", "app_label", "url"}
# Where a signature is required first, the order of checks must not reveal whether the id exists.
SIGNED_FOR = ("/settings/",)


OWNED_ROUTES = sorted({each.route for each in ENDPOINTS if each.parameters & OWNED})


def test_DJ_14_every_parameter_of_the_urlconf_is_known_to_the_sweep() -> None:
    # The admin site opens to staff only.
    places = STAFF_ONLY | dict.fromkeys(ADMIN_ONLY, ("/admin/", "/logos/"))
    anywhere = OWNED | SECRETS | KNOWN_TO_ALL_AGENTS | OPEN_TO_ALL
    unknown = {
        (name, each.route)
        for each in ENDPOINTS
        for name in each.parameters - anywhere
        if not each.route.startswith(places.get(name, ()))
    }
    assert not unknown, "add the parameter to a list of this module"
    assert {name for each in ENDPOINTS for name in each.parameters} == anywhere | places.keys()


@dataclass
class Cast:
    """Alice, who owns; bob, who owns as much; Ada, an admin who owns nothing; another provider."""

    provider: ServiceProvider
    secret: str
    alice: Person
    alices_agent: AgentClient
    bob: Person
    bobs_agent: AgentClient
    ada: Person
    stranger: dict[str, str]
    # Alice's objects, by the names routes use; some twice, in different states.
    things: list[dict[str, str]]


@pytest.fixture(scope="module")
def parties(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> Iterator[Cast]:
    with rows_of_a_module(django_db_blocker):
        yield _parties(datetime.now(UTC))


@pytest.fixture
def cast(parties: Cast) -> Iterator[Cast]:
    with signed_in(parties.alice, parties.bob, parties.ada):
        yield parties


def _parties(now: datetime) -> Cast:
    for purpose in ("token", "receipt"):
        ensure_key(purpose=purpose, actor=TESTER, now=now)
    allowed = ("read:calendar", "write:files", "transact:payments")
    provider, secret = create_service_provider(
        name="Acme", audience="http://127.0.0.1:8001", allowed=allowed, actor=TESTER, now=now
    )
    people = [
        registered(f"{name}@x.example", name, now=now, is_staff=name == "Ada")
        for name in ("Alice", "Bob", "Ada")
    ]
    agents = [enrolled(person.human, now=now) for person in people[:2]]
    stranger = create_service_provider(
        name="Stranger", audience="http://127.0.0.1:8002", allowed=allowed, actor=TESTER, now=now
    )
    waiting = pending(
        agents[0], provider, now=now, capabilities=[{"type": "write", "resource": "files"}]
    )
    confirmation = confirmation_of(agents[0], provider, secret, now=now)
    absence = set_absence(
        human=people[0].human,
        starts_at=now,
        ends_at=now + timedelta(days=1),
        actor=TESTER,
        now=now,
    )
    common = {
        "agent_id": str(agents[0].agent().pk),
        "passkey_id": str(Passkey.objects.get(human=people[0].human).pk),
        "confirmation_id": str(confirmation.pk),
        "event_id": str(Event.objects.get(kind=CONFIRMATION_REQUESTED).pk),
        "channel_id": str(by_mail(people[0].human, now).pk),
        "session_id": str(HumanSession.objects.get(human=people[0].human).pk),
        "absence_id": str(absence.pk),
        "catalogue_id": str(proposed(provider, now).pk),
    }
    return Cast(
        provider=provider,
        secret=secret,
        alice=people[0],
        alices_agent=agents[0],
        bob=people[1],
        bobs_agent=agents[1],
        ada=people[2],
        stranger=basic(*stranger),
        things=[common | {"grant_id": str(found)} for found in (confirmation.grant_id, waiting.pk)],
    )


def confirmation_of(
    agent: AgentClient, provider: ServiceProvider, secret: str, *, now: datetime
) -> Confirmation:
    """A payment of the agent that awaits its owner's confirmation."""
    envelope = {"confirm_above": {"value": "50.00", "currency": "EUR"}}
    grant = approved(agent, provider, now=now, capabilities=[PAY], envelope=envelope)
    token, url = issue(agent, grant).json()["access_token"], f"{provider.audience}/v1/payments"
    amount = {"value": "60.00", "currency": "EUR"}
    body = {
        "token": token,
        "proof": agent.proof("POST", "", url=url, access_token=token),
        "method": "POST",
        "url": url,
        "action": {"type": "transact", "resource": "payments", "amount": amount},
        "idempotency_key": "k",
    }
    headers = basic(provider, secret)
    answer = browser().post(
        "/v1/verify", json.dumps(body), content_type="application/json", headers=headers
    )
    return Confirmation.objects.get(pk=answer.json()["confirmation_id"])


def callers(cast: Cast, method: str, path: str) -> Iterator[tuple[str, bool, Any]]:
    """All but alice: who, whether the address accepts such callers at all, and the answer."""
    if path.startswith("/v1/"):
        yield (
            "bob's agent",
            True,
            cast.bobs_agent.call(method, path, None if method == "GET" else {}),
        )
        headers = cast.stranger | {"Idempotency-Key": "x"} if method == "GET" else cast.stranger
        stranger = browser().generic(
            method, path, b"", content_type="application/json", headers=headers
        )
        yield "another service provider", False, stranger
    pages = not path.startswith("/v1/")
    for name, person in (("bob", cast.bob), ("Ada, an admin", cast.ada)):
        # The owner may read a receipt with a session; no other API call reads sessions.
        if pages or path.endswith("/receipt"):
            yield (
                name,
                True,
                person.client.generic(
                    method, path, page_body(person, path), content_type="application/json"
                ),
            )
        else:
            yield (
                name,
                False,
                person.client.generic(method, path, "{}", content_type="application/json"),
            )


def page_body(person: Person, path: str) -> str:
    signed = person.verification(path) if path.startswith(SIGNED_FOR) else None
    drawn = signing.dumps({"grant": ""}, salt="approvals.drawn")
    body = {
        "choices": {},
        "drawn": drawn,
        "decision": "approve",
        "credential": {},
        "verification": signed,
    }
    return json.dumps(body)


@pytest.mark.parametrize("route", OWNED_ROUTES)
def test_DJ_14_another_owners_id_is_answered_like_an_unknown_id(route: str, cast: Cast) -> None:
    """U3, U4: nothing changes, and each refusal is one event, of the same kind in both cases."""
    nobody, before = address(route, {}), rows()
    for things in cast.things:
        theirs = address(route, things)
        for method in METHODS:
            known = [_asked(each, theirs) for each in _each_alone(cast, method, theirs)]
            unknown = [_asked(each, nobody) for each in _each_alone(cast, method, nobody)]
            assert known == unknown, f"{method} {route}"
            for who, takes, status, _, events in known:
                place = f"{who}: {method} {route} {status} {events} events"
                assert status in ({404, 405} if takes else {401, 403, 404, 405}), place
                assert len(events) == (status != 405), place
            assert rows() == before, f"{method} {route}"


STAFF_PAGES = [
    each.route
    for each in ENDPOINTS
    if each.parameters & (STAFF_ONLY.keys() | {"code"})
    # The admin site leads other people to its sign-in (tests/flows/test_sweep.py).
    and not each.route.startswith(("/setup/", "/admin/"))
]


@pytest.mark.parametrize("route", STAFF_PAGES)
def test_DJ_14_pages_of_staff_and_of_others_links_are_unknown_to_users(
    route: str, cast: Cast
) -> None:
    ids, before = cast.things[1], rows()
    ids = ids | {
        "kind": "agent",
        "row_id": ids["agent_id"],
        "request_id": ids["grant_id"],
        "human_id": str(cast.alice.human.pk),
    }
    for method in METHODS:
        answers = [
            cast.bob.client.generic(
                method, path, page_body(cast.bob, path), content_type="application/json"
            )
            for path in (address(route, ids), address(route, {}))
        ]
        for answer in answers:
            refused_shape(answer, route)
            assert answer.status_code in {404, 405}, f"{method} {route}"
        assert answers[0].content == answers[1].content, f"{method} {route}"
    assert rows() == before


def _each_alone(cast: Cast, method: str, path: str) -> Iterator[tuple[str, bool, Any, list[Any]]]:
    """Each caller with the events of its call alone."""
    made = callers(cast, method, path)
    while True:
        known = set(Event.objects.values_list("pk", flat=True))
        try:
            who, takes, answer = next(made)
        except StopIteration:
            return
        events = Event.objects.filter(outcome="denied").exclude(pk__in=known)
        yield (
            who,
            takes,
            answer,
            sorted(events.values_list("kind", "reason", "data__error", "data__route")),
        )


def _asked(
    each: tuple[str, bool, Any, list[Any]], path: str
) -> tuple[str, bool, int, bytes, list[Any]]:
    who, takes, answer, events = each
    refused_shape(answer, path)
    return who, takes, answer.status_code, answer.content, events


def test_DJ_14_the_sweep_would_see_an_answer(cast: Cast) -> None:
    """Alice gets an answer where the sweep requires refusals, so it asks about what exists."""
    ids = cast.things[0]
    for path in (
        "/approvals/{grant_id}/",
        "/agents/{agent_id}/",
        "/confirmations/{confirmation_id}/",
        "/activity/{event_id}/",
    ):
        assert cast.alice.get(path.format(**ids)).status_code == 200, path
    for path in ("/v1/grants/{grant_id}", "/v1/confirmations/{confirmation_id}"):
        assert cast.alices_agent.call("GET", path.format(**ids)).status_code == 200, path


def test_DJ_14_a_grant_of_anothers_agent_is_not_revoked_at_its_page(cast: Cast) -> None:
    before = rows()
    answers = [
        cast.bob.client.post(f"/approvals/{grant}/revoke/x")
        for grant in (cast.things[0]["grant_id"], uuid.UUID(int=7))
    ]
    assert [answer.status_code for answer in answers] == [404, 404]
    assert answers[0].content == answers[1].content
    assert rows() == before


# Ids in bodies and queries: the caller, and the call that names something of alice's.
def _token(cast: Cast, grant_id: str) -> Any:
    return cast.bobs_agent.call("POST", "/v1/tokens", {"grant_id": grant_id})


def _events(cast: Cast, agent_id: str) -> Any:
    return cast.bobs_agent.call("GET", "/v1/audit/events", query=f"?agent={agent_id}")


@pytest.mark.parametrize(
    ("ask", "name", "status"), [(_token, "grant_id", 400), (_events, "agent_id", 200)]
)
def test_DJ_14_an_id_in_a_body_or_query_is_as_unknown(
    ask: Any, name: str, status: int, cast: Cast
) -> None:
    before = rows()
    answers = [ask(cast, each) for each in (cast.things[0][name], str(uuid.UUID(int=7)))]
    assert [answer.status_code for answer in answers] == [status] * 2
    assert answers[0].content == answers[1].content
    assert rows() == before


def test_DJ_14_a_cursor_of_anothers_list_shows_only_ones_own(cast: Cast, now: datetime) -> None:
    pending(cast.bobs_agent, cast.provider, now=now)
    listed = cast.bobs_agent.call(
        "GET", "/v1/grants", query=f"?after={cast.things[0]['grant_id']}"
    ).json()
    mine = {
        str(pk)
        for pk in Grant.objects.filter(agent=cast.bobs_agent.agent()).values_list("pk", flat=True)
    }
    assert {each["grant_id"] for each in listed["results"]} <= mine
    page = cast.bob.get(f"/activity/?agent={cast.things[0]['agent_id']}")
    assert page.status_code == 200
    assert page.context["lines"] == []


@pytest.mark.parametrize("path", ["/v1/introspect", "/v1/revoke"])
def test_DJ_14_RV_8_another_providers_token_is_like_no_token(path: str, cast: Cast) -> None:
    grant = Grant.objects.get(pk=cast.things[0]["grant_id"])
    token = issue(cast.alices_agent, grant).json()["access_token"]
    before, form = rows(), "application/x-www-form-urlencoded"
    answers = [
        browser().post(path, f"token={each}", content_type=form, headers=cast.stranger)
        for each in (token, token[:-9], "x")
    ]
    assert {(answer.status_code, answer.content) for answer in answers} == {
        (200, answers[0].content)
    }
    assert token.encode() not in answers[0].content
    assert rows() == before
    proof = cast.bobs_agent.proof("POST", path, f"token={token}".encode())
    asked = browser().post(path, f"token={token}", content_type=form, headers={"DPoP": proof})
    # Introspection is for service providers only; /v1/revoke does not tell an agent whose token it
    # is.
    assert asked.status_code == (200 if path == "/v1/revoke" else 401)
    assert rows() == before


def test_DJ_14_an_idempotency_key_of_another_caller_is_a_new_key(cast: Cast) -> None:
    body = {"service_provider": cast.provider.slug, "capabilities": [READ_CALENDAR]}
    first = cast.alices_agent.call("POST", "/v1/grants", body, key="shared")
    second = cast.bobs_agent.call("POST", "/v1/grants", body, key="shared")
    assert [first.status_code, second.status_code] == [201, 201]
    assert first.json()["grant_id"] != second.json()["grant_id"]
    assert Agent.objects.get(grants=second.json()["grant_id"]).human == cast.bob.human
