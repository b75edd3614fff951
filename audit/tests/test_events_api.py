"""GET /v1/audit/events: who reads which events, in what order; following the cursor misses none."""

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pytest
from django.db import connection
from rest_framework.permissions import BasePermission
from rest_framework.response import Response
from rest_framework.test import APIRequestFactory, force_authenticate

from agentauth.protocol.encoding import b64u_decode
from agentauth.protocol.errors import InvalidRequestError
from agentauth.protocol.log_hashes import entry_hash, field_commitment
from audit.events_api import EventsView
from audit.log.sequencer import sequence_pending, sequence_until_empty
from audit.models import Event, Opening
from audit.tests.conftest import MakeEvent

pytestmark = pytest.mark.django_db
MINE = uuid.UUID("0198c0de-0000-7000-8000-00000000000a")
OTHERS = uuid.UUID("0198c0de-0000-7000-8000-00000000000b")

HUMAN = uuid.UUID("0198c0de-0000-7000-8000-00000000000c")


@dataclass
class Principal:
    scope: dict[str, str] | None
    is_authenticated: bool = True

    def audit_filter(self) -> dict[str, str] | None:
        return self.scope


AUDITOR = Principal({})
AGENT = Principal({"agent_id": str(MINE)})


def _get(principal: object, query: str = "") -> Response:
    request = APIRequestFactory().get(f"/v1/audit/events?{query}")
    force_authenticate(request, user=principal)  # type: ignore[arg-type]  # any principal with an audit_filter
    # Errors are raised as they are; other tests cover their HTTP responses.
    view = EventsView()
    view.setup(request)
    initialized = view.initialize_request(request)
    view.request = initialized
    view.headers = {}
    view.initial(initialized)
    return view.get(initialized)


def _results(principal: object, query: str = "") -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = _get(principal, query).data["results"]
    return results


def _permitted(principal: object) -> bool:
    request = EventsView().initialize_request(APIRequestFactory().get("/v1/audit/events"))
    request.user = principal  # type: ignore[assignment]  # as above
    (permission,) = (cls() for cls in EventsView.permission_classes)
    assert isinstance(permission, BasePermission)
    return permission.has_permission(request, EventsView())


def test_only_a_principal_that_says_so_reads_events() -> None:
    assert _permitted(AUDITOR)
    assert _permitted(AGENT)
    assert not _permitted(Principal(None))
    assert not _permitted(object())
    assert not _permitted(None)


def test_an_agent_reads_its_own_and_an_auditor_all(make_event: MakeEvent) -> None:
    mine, _ = make_event(agent_id=MINE), make_event(agent_id=OTHERS)
    assert [event["id"] for event in _results(AGENT)] == [str(mine.id)]
    assert len(_results(AUDITOR)) == 2
    assert _results(AGENT, f"agent={OTHERS}") == []


def test_an_event_comes_with_all_that_is_needed_to_prove_it(
    make_event: MakeEvent, now: datetime
) -> None:
    make_event(agent_id=MINE, data={"n": 1}, personal={"name": "Alice"})
    (waiting,) = _results(AGENT)
    assert waiting["leaf_index"] is None
    sequence_until_empty(now=now)
    (event,) = _results(AGENT)
    assert event["leaf_index"] == 0
    body = {
        name: value
        for name, value in event.items()
        if name not in {"salt", "leaf_index", "openings"}
    }
    stored = Event.objects.get()
    assert entry_hash(body, b64u_decode(event["salt"])) == entry_hash(body, bytes(stored.salt))
    opening = event["openings"]["name"]
    assert opening["value"] == "Alice"
    assert body["data"]["name"]["commitment"] == field_commitment(
        "Alice", b64u_decode(opening["salt"])
    )


def test_erased_member_has_no_opening(make_event: MakeEvent) -> None:
    make_event(agent_id=MINE, personal={"name": "Alice"})
    Opening.objects.all().delete()
    (event,) = _results(AGENT)
    assert event["openings"] == {}
    assert "commitment" in event["data"]["name"]


@pytest.mark.parametrize(
    "change", [{"value": "Mallory"}, {"salt": bytes(32)}, {"salt": b"short"}, {"member": "other"}]
)
def test_an_opening_that_is_not_what_the_event_committed_to_is_not_shown(
    make_event: MakeEvent, change: dict[str, Any]
) -> None:
    made = make_event(agent_id=MINE, personal={"name": "Alice", "other": "text"})
    opening = Opening.objects.get(event=made, member="name")
    Opening.objects.filter(event=made).delete()
    row = {name: getattr(opening, name) for name in ("id", "event_id", "member", "salt", "value")}
    Opening.objects.create(**(row | change))
    (event,) = _results(AGENT)
    assert event["openings"] == {}


def test_filters_by_agent_human_and_kind(make_event: MakeEvent) -> None:
    make_event(agent_id=MINE, human_id=HUMAN)
    make_event(agent_id=OTHERS, human_id=HUMAN, kind="kms.key.published")
    assert len(_results(AUDITOR, f"human={HUMAN}")) == 2
    assert len(_results(AUDITOR, f"human={HUMAN}&agent={MINE}")) == 1
    assert _results(AUDITOR, f"human={MINE}") == []
    # A filter narrows what an agent may read, and never widens it.
    assert [event["agent_id"] for event in _results(AGENT, f"human={HUMAN}")] == [str(MINE)]
    assert len(_results(AUDITOR, f"agent={MINE}")) == 1
    assert len(_results(AUDITOR, "kind=kms.key.published")) == 1
    assert _results(AUDITOR, f"agent={MINE}&kind=kms.key.published") == []


def _follow(query: str = "") -> list[str]:
    seen, cursor = [], ""
    for _ in range(20):
        answer = _get(AUDITOR, f"limit=2&{query}{cursor}").data
        seen += [event["id"] for event in answer["results"]]
        if answer["next"] is None:
            return seen
        cursor = f"&after={answer['next']}"
    raise AssertionError("the cursor does not end")


@pytest.mark.parametrize("numbered", [0, 1, 2, 4, 7])
def test_the_cursor_leads_through_numbered_and_waiting_events_once(
    make_event: MakeEvent, now: datetime, numbered: int
) -> None:
    ids = [str(make_event().id) for _ in range(7)]
    sequence_pending(now=now, batch=numbered) if numbered else None
    seen = _follow()
    assert sorted(seen) == sorted(ids)
    assert len(seen) == len(set(seen))


def test_an_event_numbered_between_two_pages_is_not_missed(
    make_event: MakeEvent, now: datetime
) -> None:
    ids = {str(make_event().id) for _ in range(5)}
    first = _get(AUDITOR, "limit=2").data
    late = str(make_event().id)
    sequence_until_empty(now=now)
    rest = _get(AUDITOR, f"limit=200&after={first['next']}").data["results"]
    assert {event["id"] for event in [*first["results"], *rest]} == ids | {late}


@pytest.mark.parametrize(("order", "indexes"), [("asc", [0, 1, 2]), ("desc", [None] * 3)])
def test_an_event_numbered_while_a_page_is_read_is_on_it_once(
    make_event: MakeEvent, now: datetime, order: str, indexes: list[int | None]
) -> None:
    ids = [str(make_event().id) for _ in range(3)]
    asked: list[str] = []

    def sequencer_in_between(execute: Callable[..., Any], sql: str, *rest: Any) -> Any:
        answer = execute(sql, *rest)
        if "audit_event" in sql and not asked:
            asked.append(sql)
            sequence_until_empty(now=now)
        return answer

    with connection.execute_wrapper(sequencer_in_between):
        page = _get(AUDITOR, f"order={order}").data
    found = page["results"] if order == "asc" else page["results"][::-1]
    assert [event["id"] for event in found] == sorted(ids)
    assert [event["leaf_index"] for event in found] == indexes
    assert page["next"] is None


@pytest.mark.parametrize("numbered", [0, 1, 4, 7])
def test_events_come_in_the_order_of_the_log_or_newest_first(
    make_event: MakeEvent, now: datetime, numbered: int
) -> None:
    for _ in range(7):
        make_event()
    sequence_pending(now=now, batch=numbered) if numbered else None
    seen = _follow("order=asc")
    assert seen == _follow()
    assert _follow("order=desc") == seen[::-1]


def test_a_cursor_of_one_order_is_refused_in_the_other(
    make_event: MakeEvent, now: datetime
) -> None:
    for _ in range(3):
        make_event()
    for order, other in (("asc", "desc"), ("desc", "asc")):
        end = _get(AUDITOR, f"limit=1&order={order}").data["next"]
        with pytest.raises(InvalidRequestError):
            _get(AUDITOR, f"order={other}&after={end}")


@pytest.mark.parametrize(
    "query",
    [
        "order=", "order=DESC", "order=newest", "order=desc&after=1", "order=desc&after=~",
        "order=desc&after=~x", "order=desc&after=~.1", "after=~1", "limit=0", "limit=201",
        "limit=-1", "limit=²", "limit=1e1", "limit=", "agent=", "agent=x", f"agent={{{MINE}}}",
        f"agent={str(MINE).upper()}", "kind=", "kind=%00", "kind=KMS", "after=", "after=x",
        "after=1.x", "after=1.5", "after=99999999999999999999", "after=²", "page=2",
        "limit=1&limit=2", "human=1",
    ],
)  # fmt: skip
def test_a_query_outside_the_contract_is_refused(query: str) -> None:
    with pytest.raises(InvalidRequestError):
        _get(AUDITOR, query)


def test_the_answer_is_not_kept_by_caches() -> None:
    assert _get(AUDITOR).headers["Cache-Control"] == "no-store"
