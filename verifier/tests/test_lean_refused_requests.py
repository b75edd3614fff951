"""HTTP refusals of the three paths: the view and the lean endpoint give the same answer."""

import contextlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db import OperationalError, connection
from django.db.models import DateTimeField, Value
from django.utils import timezone

from agentauth.protocol.errors import RateLimitedError
from audit.models import Event
from registry import caller_limits
from registry.services import provider_authentication
from tests import conformance
from tests.contract.scenarios import one_call_a_minute
from tests.endpoint_comparison import Ask, Both, ask
from tests.endpoint_comparison import both as both  # noqa: PLC0414 — a fixture
from tests.endpoint_comparison import served as served  # noqa: PLC0414 — a fixture
from verifier.endpoint_paths import BATCH, INTROSPECT, VERIFY
from verifier.requests import parse_delivery
from verifier.services import introspection, replay_cache_lease, replay_epochs, state_cache
from verifier.services.host_clock_check import CLOCK
from verifier.services.verified_token_cache import ProvedTokens
from verifier.stores import database_decisions, group_commit
from verifier.stores.redis_probe import RedisProbe
from verifier.tests.scene import LOOK, PAY, READ, SYSTEM, Scene, pay, scene

pytestmark = [pytest.mark.redis, pytest.mark.postgres, pytest.mark.django_db(transaction=True)]

PATHS = (VERIFY, BATCH, INTROSPECT)
# Refusals that any path may give, so the API's description does not list them.
ANYWHERE = {(405, "method_not_allowed"), (500, "server_error")}


def described() -> list[tuple[str, int, str]]:
    """(path, status, error) of each refusal in the API's description, and of ANYWHERE."""
    found = []
    for path in PATHS:
        operation = conformance.described("POST", path)
        assert operation is not None
        for status, answer in operation["responses"].items():
            codes = answer["content"]["application/json"].get("examples", {})
            found += [(path, int(status), code) for code in codes]
        found += [(path, *each) for each in sorted(ANYWHERE)]
    return found


def good(place: Scene, path: str, **changes: str | None) -> Ask:
    """A new valid request."""
    if path == INTROSPECT:
        return ask(place, f"token={place.token()}".encode(), path, **changes)
    question = place.body(LOOK)
    return ask(place, question if path == VERIFY else {"requests": [question]}, path, **changes)


def paying(place: Scene, path: str, name: str) -> Ask:
    """A new request about money, so the database decides."""
    return ask(place, place.body(pay("1.00"), idempotency_key="mine"), path, idempotency_key=name)


Make = Callable[[], Ask]
Refused = Callable[[Both, Scene, str], contextlib.AbstractContextManager[Make]]
REFUSED: dict[tuple[int, str], list[tuple[tuple[str, ...], Refused]]] = {}


def of(
    status: int, error: str, *paths: str
) -> Callable[[Callable[[Both, Scene, str], Iterator[Make]]], None]:
    """Register a scenario for this refusal, by default at all paths.

    While it is active, the callable it yields makes the request.
    """

    def kept(scenario: Callable[[Both, Scene, str], Iterator[Make]]) -> None:
        made = contextlib.contextmanager(scenario)
        REFUSED.setdefault((status, error), []).append((paths or PATHS, made))

    return kept


@of(400, "invalid_request")
def a_query(both: Both, place: Scene, path: str) -> Iterator[Make]:
    made = good(place, path)
    made.query = "a=b"
    yield lambda: made


@of(400, "invalid_request")
def a_foreign_host(both: Both, place: Scene, path: str) -> Iterator[Make]:
    yield lambda: good(place, path, host="evil.example")


@of(400, "invalid_request")
def no_length(both: Both, place: Scene, path: str) -> Iterator[Make]:
    yield lambda: good(place, path, content_length=None, transfer_encoding="chunked")


@of(400, "invalid_request")
def nothing(both: Both, place: Scene, path: str) -> Iterator[Make]:
    yield lambda: ask(place, b"", path)


@of(406, "not_acceptable")
def an_answer_that_is_not_made(both: Both, place: Scene, path: str) -> Iterator[Make]:
    yield lambda: good(place, path, accept="text/html")


@of(401, "invalid_client")
def nobody(both: Both, place: Scene, path: str) -> Iterator[Make]:
    yield lambda: good(place, path, authorization=None)


@of(401, "invalid_client")
def somebody_else(both: Both, place: Scene, path: str) -> Iterator[Make]:
    yield lambda: good(place, path, authorization="Basic eDp5")


@of(401, "invalid_client")
def a_proof(both: Both, place: Scene, path: str) -> Iterator[Make]:
    yield lambda: good(place, path, authorization=None, dpop="x")


@of(405, "method_not_allowed")
def another_method(both: Both, place: Scene, path: str) -> Iterator[Make]:
    made = good(place, path)
    made.method = "PUT"
    yield lambda: made


@of(409, "idempotency_mismatch")
def another_body(both: Both, place: Scene, path: str) -> Iterator[Make]:
    both.at_view(paying(place, path, "call-1"))
    yield lambda: paying(place, path, "call-1")


@of(409, "idempotency_in_progress")
def a_call_that_still_runs(both: Both, place: Scene, path: str) -> Iterator[Make]:
    """Another connection holds the row and does not commit while the call waits."""
    made = paying(place, path, "call-1")
    named = parse_delivery(
        "call-1", service_provider_id=place.provider.pk, body=made.body, operation_key=None
    )
    assert named is not None
    later = timezone.now() + timedelta(minutes=1)
    with contextlib.closing(connection.copy()) as other:
        other.set_autocommit(False)
        with other.cursor() as cursor:
            cursor.execute(
                "INSERT INTO verifier_providercall (digest, body_sha256, answer, expires_at) "
                "VALUES (%s, %s, '', %s)",
                [named.digest, named.body_sha256, later],
            )
        yield lambda: made


@of(413, "request_too_large")
def too_large(both: Both, place: Scene, path: str) -> Iterator[Make]:
    most = (1024 if path == BATCH else 64) * 1024
    yield lambda: ask(place, b" " * (most + 1), path)


@of(413, "request_too_large")
def far_too_large(both: Both, place: Scene, path: str) -> Iterator[Make]:
    yield lambda: good(place, path, content_length="2000000")


@of(415, "unsupported_media_type")
def a_text(both: Both, place: Scene, path: str) -> Iterator[Make]:
    yield lambda: good(place, path, content_type="text/plain")


@of(406, "not_acceptable")
def never_json(both: Both, place: Scene, path: str) -> Iterator[Make]:
    yield lambda: good(place, path, accept="application/json;q=0, */*")


@of(415, "unsupported_media_type")
def another_charset(both: Both, place: Scene, path: str) -> Iterator[Make]:
    kind = good(place, path)
    media_type = dict(kind.headers)["content-type"]
    yield lambda: good(place, path, content_type=f"{media_type}; charset=iso-8859-1")


@of(429, "rate_limited")
def one_too_many(both: Both, place: Scene, path: str) -> Iterator[Make]:
    with one_call_a_minute():
        both.at_view(good(place, path))
        yield lambda: good(place, path)


@of(500, "server_error")
def a_defect(both: Both, place: Scene, path: str) -> Iterator[Make]:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("a defect")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ProvedTokens, "verify", fails)
        patch.setattr(introspection, "verify_token", fails)
        yield lambda: good(place, path)


@of(503, "temporarily_unavailable")
def a_database_that_does_not_answer(both: Both, place: Scene, path: str) -> Iterator[Make]:
    """The credentials are not cached yet."""

    def fails(_: object) -> None:
        raise OperationalError

    both.running.forget()
    with pytest.MonkeyPatch.context() as patch:
        for module in (provider_authentication, state_cache):
            patch.setattr(module, "find_by_credentials", fails)
        yield lambda: good(place, path)


@of(503, "temporarily_unavailable", VERIFY)
def a_fault_in_the_store(both: Both, place: Scene, path: str) -> Iterator[Make]:
    def fails(*_: object, **__: object) -> None:
        raise OperationalError

    with pytest.MonkeyPatch.context() as patch:
        for module in (database_decisions, group_commit):
            patch.setattr(module, "decide_together", fails)
        yield lambda: paying(place, path, "call-1")


@of(503, "temporarily_unavailable", VERIFY, INTROSPECT)
def a_clock_that_is_wrong(both: Both, place: Scene, path: str) -> Iterator[Make]:
    with pytest.MonkeyPatch.context() as patch:
        later = Value(timezone.now() + timedelta(seconds=10), output_field=DateTimeField())
        patch.setattr(replay_epochs, "database_clock", lambda: later)
        # View and endpoint share this process, which reports it once.
        patch.setattr(CLOCK, "_is_recorded", True)
        replay_cache_lease.LEASE._last = None
        yield lambda: good(place, path)
    replay_cache_lease.LEASE._last = None


@of(503, "temporarily_unavailable", VERIFY)
def a_home_that_is_being_left(both: Both, place: Scene, path: str) -> Iterator[Make]:
    """Runs last, because a move cannot be undone."""
    row, _ = replay_epochs.read_or_create_row()
    replay_epochs.end_epoch(
        epoch=row.epoch, for_kind=row.kind, reason="test", actor=SYSTEM, now=timezone.now()
    )
    replay_cache_lease.LEASE._last = None
    yield lambda: good(place, path)


def test_no_scenario_is_for_what_is_not_described() -> None:
    assert REFUSED.keys() == {(status, code) for _, status, code in described()}


@pytest.mark.parametrize(("path", "status", "error"), described())
def test_each_refusal_is_the_same(
    both: Both, place: Scene, path: str, status: int, error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = place.token()
    # A new token would record an event of its own.
    monkeypatch.setattr(place, "token", lambda: token)
    scenarios = [scenario for paths, scenario in REFUSED[status, error] if path in paths]
    assert scenarios
    for scenario in scenarios:
        with scenario(both, place, path) as make:
            # Refusals by a rate limit are counted together; only the first in a second is recorded.
            answer = both.same(make, recorded=error != "rate_limited")
        assert (answer["status"], answer["error"]) == (status, error)


def test_what_is_beside_the_three_addresses_is_nowhere_and_on_record(
    both: Both, place: Scene
) -> None:
    for path in [f"{path}{more}" for path in PATHS for more in ("/", "/x")]:
        assert both.same(ask(place, b"{}", path))["error"] == "not_found"
    # Spellings that the web server refuses itself, and paths that only the web process serves.
    for path in ("/v1/verify;x", "/v1/verify%20", "/v1/tokens", "/", "/sign-in/"):
        asked, before = ask(place, b"{}", path), Event.objects.count()
        answer = both.running.ask(asked.path, "", asked.lines(), asked.body)
        assert (answer.status_code, answer.json()["error"]) == (404, "not_found")
        assert Event.objects.count() == before + 1


def test_too_many_calls_to_unknown_paths_are_rate_limited(
    both: Both, place: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def used_up(sort: str, key: str) -> None:
        if (sort, key) == (caller_limits.ADDRESS, "127.0.0.1"):
            raise RateLimitedError("Too many calls.", retry_after=7)

    monkeypatch.setattr(caller_limits, "take", used_up)
    for changes in ({}, {"authorization": None}):
        answer = both.same(ask(place, b"{}", "/v1/verify/x", **changes), recorded=False)
        assert (answer["status"], answer["retry_after"]) == (429, 7)


@pytest.mark.parametrize("both", ["redis"], indirect=True)
@pytest.mark.parametrize("action", [LOOK, pay("1.00")], ids=["light", "durable"])
@pytest.mark.parametrize("path", [VERIFY, BATCH])
def test_what_a_redis_that_forgot_brings_is_the_same(
    both: Both, action: dict[str, Any], path: str
) -> None:
    place = scene(READ, PAY)
    named = {} if action is LOOK else {"idempotency_key": "k"}
    question = place.body(action, **named)
    RedisProbe().mark(7)
    answer = both.same(ask(place, question if path == VERIFY else {"requests": [question]}, path))
    one = answer if path == VERIFY else answer["results"][0]
    assert one["error"] == "temporarily_unavailable"
