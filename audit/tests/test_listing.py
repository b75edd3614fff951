"""Pages of the log in order: no event is missed with any filter, and a page's cost is bounded."""

import random
import uuid
from datetime import datetime
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from audit import kinds
from audit.log import listing
from audit.log.listing import Cursor, Descent, page_newest_first, page_of_log
from audit.log.sequencer import sequence_pending, sequence_until_empty
from audit.models import Event, Leaf
from audit.tests.conftest import MakeEvent

pytestmark = pytest.mark.django_db
AGENTS = [uuid.UUID(int=number) for number in range(1, 4)]
KINDS = [kinds.DECISION_ALLOWED, kinds.DECISION_DENIED, kinds.KEY_PUBLISHED]


@pytest.fixture
def log(make_event: MakeEvent, now: datetime) -> list[Event]:
    """60 events of three agents, their humans and three kinds; ten of them have no number yet."""
    chosen = random.Random(7)
    made = []
    for number in range(60):
        agent = chosen.choice([*AGENTS, None])
        made.append(
            make_event(
                agent_id=agent,
                human_id=None if agent is None else uuid.UUID(int=agent.int * 100),
                kind=chosen.choice(KINDS),
                grant_id=chosen.choice([*AGENTS, None]),
                personal={"n": number},
            )
        )
    sequence_pending(now=now, batch=50)
    return made


def follow(limit: int, *, newest_first: bool = False, **wanted: Any) -> list[Event]:
    """The events of all pages; no page exceeds the limit."""
    read: Any = page_newest_first if newest_first else page_of_log
    after, found = Descent() if newest_first else Cursor(), []
    for _ in range(200):
        page = read(wanted=list(wanted.items()), after=after, limit=limit)
        assert len(page.events) <= limit
        found += [event for event, _ in page.events]
        if page.end is None:
            return found
        assert page.end != after
        after = page.end
    raise AssertionError("the pages do not end")


def in_order(log: list[Event], **wanted: Any) -> list[uuid.UUID]:
    """The expected result: numbered events in order, then the others."""
    leaves = dict(Leaf.objects.values_list("event_id", "leaf_index"))
    fitting = [
        event for event in log if all(getattr(event, name) == wanted[name] for name in wanted)
    ]
    return [
        event.pk for event in sorted(fitting, key=lambda each: (leaves.get(each.pk, 1000), each.pk))
    ]


@pytest.mark.parametrize("examined", [1, 3, 7, 5_000])
@pytest.mark.parametrize("limit", [1, 7, 200])
def test_following_pages_gives_each_wanted_event_once_in_order(
    log: list[Event], monkeypatch: pytest.MonkeyPatch, examined: int, limit: int
) -> None:
    monkeypatch.setattr(listing, "EXAMINED", examined)
    human = uuid.UUID(int=AGENTS[0].int * 100)
    for wanted in (
        {},
        {"agent_id": AGENTS[0]},
        {"human_id": human},
        {"kind": KINDS[0]},
        {"kind": KINDS[2]},
        {"agent_id": AGENTS[1], "kind": KINDS[1]},
        {"agent_id": AGENTS[0], "human_id": human, "kind": KINDS[0]},
        {"grant_id": AGENTS[2]},
        {"human_id": human, "grant_id": AGENTS[0]},
        {"agent_id": uuid.UUID(int=9)},
    ):
        assert [event.pk for event in follow(limit, **wanted)] == in_order(log, **wanted)
        backwards = follow(limit, newest_first=True, **wanted)
        assert [event.pk for event in backwards] == in_order(log, **wanted)[::-1]


def test_what_excludes_itself_is_empty(log: list[Event]) -> None:
    wanted = [("agent_id", str(AGENTS[0])), ("agent_id", AGENTS[1])]
    assert page_of_log(wanted=wanted, after=Cursor(), limit=5) == ([], None)
    assert page_newest_first(wanted=wanted, after=Descent(), limit=5) == ([], None)
    same = [("agent_id", str(AGENTS[0])), ("agent_id", AGENTS[0])]
    assert page_of_log(wanted=same, after=Cursor(), limit=5).events


def test_what_is_numbered_between_two_pages_is_on_one_of_them(
    log: list[Event], now: datetime
) -> None:
    first = page_of_log(wanted=[("kind", KINDS[0])], after=Cursor(), limit=200)
    assert any(index is None for _, index in first.events)
    sequence_until_empty(now=now)
    assert first.end is None
    last = max(index for _, index in first.events if index is not None)
    rest = page_of_log(wanted=[("kind", KINDS[0])], after=Cursor(last), limit=200)
    seen = {event.pk for event, _ in [*first.events, *rest.events]}
    assert seen == set(in_order(log, kind=KINDS[0]))


def test_page_that_no_index_serves_examines_a_bounded_number_of_leaves(
    log: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "EXAMINED", 10)
    page = page_of_log(wanted=[("grant_id", uuid.UUID(int=9))], after=Cursor(), limit=5)
    assert page == ([], Cursor(9))
    back = page_newest_first(wanted=[("grant_id", uuid.UUID(int=9))], after=Descent(30), limit=5)
    assert back == ([], Descent(20))


@pytest.mark.parametrize("limit", [3, 10, 12])
def test_newest_first_misses_none_that_is_numbered_between_two_pages(
    log: list[Event], now: datetime, limit: int
) -> None:
    first = page_newest_first(wanted=[], after=Descent(), limit=limit)
    assert first.events[0][1] is None
    sequence_until_empty(now=now)
    seen, after = {event.pk for event, _ in first.events}, first.end
    while isinstance(after, Descent):
        page = page_newest_first(wanted=[], after=after, limit=limit)
        seen |= {event.pk for event, _ in page.events}
        after = page.end
    assert seen == {event.pk for event in log}


def test_a_page_takes_the_same_few_questions_however_much_is_on_it(log: list[Event]) -> None:
    asked = []
    for limit in (1, 50):
        with CaptureQueriesContext(connection) as context:
            page_of_log(wanted=[("agent_id", AGENTS[0])], after=Cursor(), limit=limit)
        asked.append(len(context))
    assert asked[0] == asked[1] <= 8
