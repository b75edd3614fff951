"""What the lean endpoint reads from the database: each item once, as no fault, and then nothing."""

import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import psycopg
import pytest
from django.db.models.query import QuerySet
from prometheus_client.parser import text_string_to_metric_families

from tests.endpoint_comparison import Ask, Both, ask
from tests.endpoint_comparison import both as both  # noqa: PLC0414 — a fixture
from tests.endpoint_comparison import served as served  # noqa: PLC0414 — a fixture
from verifier.endpoint_paths import BATCH, INTROSPECT, VERIFY
from verifier.tests.scene import LOOK, READ, Scene, scene

pytestmark = [
    pytest.mark.redis,
    pytest.mark.postgres,
    pytest.mark.django_db(transaction=True),
    pytest.mark.parametrize("both", ["redis"], indirect=True),
]


def misses(both: Both) -> dict[str, float]:
    """Cache misses by kind, from the endpoint's own /metrics."""
    lines = [(b"host", b"localhost")]
    page = both.running.ask("/metrics", "", lines, b"", method="GET").content.decode()
    families = {family.name: family for family in text_string_to_metric_families(page)}
    samples = families["agentauth_verifier_misses"].samples
    return {each.labels["what"]: each.value for each in samples if each.name.endswith("_total")}


def asked(both: Both, made: Ask) -> None:
    """Assert a positive answer. Does not poll for changes, which is the watcher thread's work."""
    answer = both.running.ask(made.path, made.query, made.lines(), made.body)
    assert answer.status_code == 200
    told = answer.json()
    assert told.get("valid") or told.get("active") or told["results"][0]["valid"], told


def question(place: Scene, token: str) -> Ask:
    return ask(place, place.body(LOOK, token=token), VERIFY)


def test_OG_15_what_is_not_held_yet_is_counted_and_no_fault(
    both: Both, caplog: pytest.LogCaptureFixture
) -> None:
    place = scene(READ)
    tokens = place.token(), place.token()
    both.running.look()
    before = misses(both)
    caplog.clear()
    with caplog.at_level(logging.DEBUG):
        for token in tokens:
            for _ in range(3):
                asked(both, question(place, token))
    more = {what: number - before.get(what, 0) for what, number in misses(both).items()}
    assert more == {"token": 2, "credentials": 1}
    assert [
        each for each in caplog.records if each.levelno >= logging.WARNING or each.exc_info
    ] == []


@pytest.fixture
def queries(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every statement of every thread from now on, and every ORM query, even if never executed."""
    heard: list[str] = []

    def hearing(owner: Any, name: str, say: Callable[..., str]) -> None:
        real = getattr(owner, name)

        def called(self: Any, *args: Any, **more: Any) -> Any:
            heard.append(f"{threading.current_thread().name}: {say(*args, **more)}")
            return real(self, *args, **more)

        monkeypatch.setattr(owner, name, called)

    hearing(psycopg.Cursor, "execute", lambda sql, *_, **__: str(sql))
    hearing(psycopg.Cursor, "executemany", lambda sql, *_, **__: str(sql))
    hearing(QuerySet, "__init__", lambda model=None, *_, **__: f"of {model}")
    return heard


def test_a_light_call_of_what_is_known_asks_the_database_nothing(
    both: Both, queries: list[str]
) -> None:
    place = scene(READ, max_requests_per_minute=60, max_burst=20)
    token = place.token()
    both.running.look()

    def questions() -> list[Ask]:
        """Two single decisions, a batch of two, and an introspection."""
        batch = {"requests": [place.body(LOOK, token=token), place.body(LOOK, token=token)]}
        introspection = ask(place, f"token={token}".encode(), INTROSPECT)
        return [
            question(place, token),
            question(place, token),
            ask(place, batch, BATCH),
            introspection,
        ]

    cold, *warm = [partial(asked, both, each) for each in questions() + questions()]
    queries.clear()
    cold()
    # Proves that the fixture sees queries: credentials and token state are read once.
    assert any("load_tokens" in each and "SELECT" in each for each in queries)
    queries.clear()
    for each in warm:
        each()
    assert queries == []
