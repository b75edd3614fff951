"""Over the address's limit an unauthenticated call at the verifier never reaches Django (SA-10)."""

import asyncio
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from pytest_django import Settings

from agentauth import http_errors
from agentauth.protocol.errors import TemporarilyUnavailableError
from agentauth.server import verifier_application
from audit.log.refusal_counts import Batches
from audit.models import Event
from registry import caller_limits
from registry.services.provider_authentication import find_by_credentials
from registry.tests.cast import basic
from tests.contract.scenarios import one_call_a_minute
from tests.endpoint_comparison import Ask, Both, ask
from tests.endpoint_comparison import both as both  # noqa: PLC0414 — a fixture
from tests.endpoint_comparison import served as served  # noqa: PLC0414 — a fixture
from tests.time_limits import within
from verifier.asgi_endpoint import MAX_IN_FLIGHT
from verifier.endpoint_paths import VERIFY
from verifier.services import state_cache
from verifier.tests.scene import LOOK, Scene, scene

pytestmark = [pytest.mark.redis, pytest.mark.postgres, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def handed_on(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Calls that reach Django's view. Each address has one call a minute, and one event an hour."""
    heard: list[str] = []
    answered = verifier_application.answered_by_django

    def hearing(scope: Any, body: bytes) -> Any:
        heard.append(scope["path"])
        return answered(scope, body)

    monkeypatch.setattr(verifier_application, "answered_by_django", hearing)
    monkeypatch.setattr("agentauth.http_errors._batches", Batches(seconds=3600))
    with one_call_a_minute():
        yield heard


def wrong(place: Scene, **changes: str) -> Ask:
    secret = basic(place.provider, uuid.uuid4().hex)["Authorization"]
    return ask(place, place.body(LOOK), authorization=secret, **changes)


def elsewhere(place: Scene, **changes: str) -> Ask:
    """Through a proxy of ours, from a new address."""
    made = uuid.uuid4().int
    return wrong(place, x_forwarded_for=f"198.51.{made % 256}.{made // 256 % 256}", **changes)


def wait_until(both: Both, holds: Callable[[], bool]) -> None:
    """Run the endpoint's loop until it holds."""
    ends = time.monotonic() + within(1)
    while not holds():
        assert time.monotonic() < ends
        both.running._run(asyncio.sleep(0))


def guessed(both: Both, place: Scene, **changes: str) -> None:
    """One call refused for its secret, and one over the limit, for which an event is recorded."""
    assert [both.at_endpoint(wrong(place, **changes))[0] for _ in range(2)][1] == 429


def test_SA_10_over_its_limit_a_guess_never_comes_to_the_view(
    both: Both, handed_on: list[str]
) -> None:
    place = scene()
    guessed(both, place)
    by_view = both.at_view(wrong(place))
    handed_on.clear()
    for _ in range(3):
        assert both.at_endpoint(wrong(place)) == by_view
    assert by_view[0] == 429
    assert handed_on == []


@pytest.mark.parametrize(
    "accept", ["text/html", "application/xml", "application/json;indent=4", "a" * 600]
)
def test_SA_10_nor_does_one_with_another_accept_header(
    both: Both, handed_on: list[str], accept: str
) -> None:
    place = scene()
    guessed(both, place)
    plain = both.at_endpoint(wrong(place))
    handed_on.clear()
    assert both.at_endpoint(wrong(place, accept=accept)) == plain
    assert handed_on == []


def test_SA_10_a_wrong_secret_is_looked_up_once_between_two_looks(
    both: Both, handed_on: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, looked_up, find = scene(), [], find_by_credentials

    def hearing(pairs: Any) -> Any:
        looked_up.extend(pairs)
        return find(pairs)

    monkeypatch.setattr(state_cache, "find_by_credentials", hearing)
    guessed(both, place)
    guess = wrong(place)
    for looks in (1, 2):
        both.running.look()
        looked_up.clear()
        for _ in range(3):
            assert both._lean(guess)[0] == 429, looks
        assert len(looked_up) == 1


def test_SA_10_what_was_refused_at_once_is_in_the_next_event(
    both: Both, handed_on: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = scene()
    guessed(both, place)
    for _ in range(3):
        both.at_endpoint(wrong(place))
    monkeypatch.setattr(http_errors._batches, "_next_at", {})
    handed_on.clear()
    both.at_endpoint(wrong(place))
    assert handed_on == []
    event = Event.objects.filter(reason="rate_limited").latest("id")
    assert event.data == {"error": "rate_limited", "route": "POST v1/verify", "count": 4}


def test_SA_10_guesses_from_many_addresses_share_an_allowance(
    both: Both, handed_on: list[str], settings: Settings
) -> None:
    settings.TRUSTED_PROXIES = 1
    place = scene()
    assert both.at_endpoint(elsewhere(place))[0] == 401
    handed_on.clear()
    assert [both.at_endpoint(elsewhere(place))[0] for _ in range(3)] == [429] * 3
    assert both.at_endpoint(ask(place, place.body(LOOK)))[0] == 200
    assert handed_on == []


@pytest.mark.parametrize("path", [VERIFY, "/v1/agents", "/nowhere"])
def test_SA_10_calls_without_credentials_share_one_too(
    both: Both, handed_on: list[str], settings: Settings, path: str
) -> None:
    settings.TRUSTED_PROXIES = 1
    place = scene()

    def nameless(number: int) -> Ask:
        address = f"198.51.100.{number}"
        return ask(place, place.body(LOOK), path=path, authorization=None, x_forwarded_for=address)

    assert both.at_endpoint(nameless(1))[0] in {401, 404}
    handed_on.clear()
    assert [both.at_endpoint(nameless(number))[0] for number in range(2, 5)] == [429] * 3
    assert handed_on == []
    # Its limit is separate from that of wrong secrets.
    assert both.at_endpoint(elsewhere(place))[0] == 401


@pytest.mark.parametrize("name", ["accept", "idempotency-key"])
def test_SA_10_a_proven_caller_is_answered_whatever_lines_come_twice(
    both: Both, handed_on: list[str], name: str
) -> None:
    """If one header comes twice the others are not read, so the call seemed without credentials."""
    place = scene()
    assert both.at_endpoint(ask(place, place.body(LOOK)))[0] == 200
    caller_limits.take(caller_limits.STRANGERS, caller_limits.NAMELESS)
    assert both.at_endpoint(ask(place, place.body(LOOK), authorization=None))[0] == 429
    caller_limits.limiter(caller_limits.SERVICE_PROVIDER)._whole_at.clear()
    made = ask(place, place.body(LOOK))
    twice = replace(made, headers=[*made.headers, (name, "*/*"), (name, "*/*")])
    handed_on.clear()
    assert both.at_endpoint(twice)[0] != 429
    assert handed_on == [VERIFY]


def test_SA_10_calls_without_credentials_are_refused_as_the_view_does(
    both: Both, handed_on: list[str]
) -> None:
    place = scene()
    nameless = ask(place, place.body(LOOK), authorization=None)
    assert both.at_endpoint(nameless)[0] == 401
    status, lines, body = both.at_endpoint(nameless)
    by_view = both.at_view(nameless)
    # The view refuses before it resolves the address, and so before it knows `Allow`.
    assert (status, [each for each in lines if each[0] != "allow"]) == by_view[:2]
    assert json.loads(body) == json.loads(by_view[2])


def test_SA_10_an_event_that_cannot_be_written_is_503(
    both: Both, handed_on: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = scene()
    assert both.at_endpoint(wrong(place))[0] == 401

    def away(*_: object, **__: object) -> None:
        raise TemporarilyUnavailableError

    monkeypatch.setattr(http_errors, "record_refusal", away)
    assert both.at_endpoint(wrong(place))[0] == 503
    assert both.at_endpoint(wrong(place))[0] == 429


@pytest.mark.parametrize("accept", ["application/json", "application/json;indent=4"])
def test_SA_10_while_guesses_wait_known_callers_are_answered(
    both: Both, handed_on: list[str], monkeypatch: pytest.MonkeyPatch, accept: str
) -> None:
    place, newcomer, go = scene(), scene(), threading.Event()
    find = find_by_credentials

    def waiting(pairs: Any) -> Any:
        assert go.wait(30)
        return find(pairs)

    known = ask(place, place.body(LOOK))
    assert both.at_endpoint(known)[0] == 200
    caller_limits.take(caller_limits.STRANGERS, caller_limits.CREDENTIALS)
    caller_limits.limiter(caller_limits.SERVICE_PROVIDER)._whole_at.clear()
    monkeypatch.setattr(state_cache, "find_by_credentials", waiting)
    with ThreadPoolExecutor(MAX_IN_FLIGHT + 40) as callers:
        guesses = [
            callers.submit(both._lean, wrong(place, accept=accept))
            for _ in range(MAX_IN_FLIGHT + 20)
        ]
        loads = both.running.app._verifier.cached_state._provider_loads
        try:
            wait_until(both, lambda: len(loads._asked) == len(guesses))
            assert both.at_endpoint(ask(place, place.body(LOOK)))[0] == 200
            # Valid credentials not cached yet wait for their turn, and are not refused.
            new = callers.submit(both._lean, ask(newcomer, newcomer.body(LOOK)))
            wait_until(both, lambda: len(loads._asked) == len(guesses) + 1)
            both.running.look()
        finally:
            go.set()
        assert new.result(30)[0] == 200
        # Or told to retry, if this machine was too slow.
        assert {each.result(30)[0] for each in guesses} <= {429, 503}


def test_SA_10_good_credentials_are_good_at_a_guessers_address(
    both: Both, handed_on: list[str]
) -> None:
    place = scene()
    guessed(both, place)
    both.running.forget()
    handed_on.clear()
    assert both.at_endpoint(ask(place, place.body(LOOK)))[0] == 200
    assert handed_on == []
    caller_limits.limiter(caller_limits.SERVICE_PROVIDER)._whole_at.clear()
    both.running.forget()
    # In a form only the view accepts, which is read first.
    assert (
        both.at_endpoint(ask(place, place.body(LOOK), accept="application/json;indent=4"))[0] == 200
    )
    assert handed_on == [VERIFY]
