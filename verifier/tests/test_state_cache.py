"""A process's state cache: what each change drops, and that no stale state is returned as fresh."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from django.db import transaction
from django.utils import timezone

from agentauth.protocol.capability import parse_capabilities
from agentauth.protocol.errors import AgentAuthError, TemporarilyUnavailableError
from kms.models import Key
from kms.services import disable_key, rotate_key
from kms.state_change_publisher import Subject, publish_change
from registry.models import Grant
from registry.services import agent_manifests, agents, grants, humans, service_providers, tokens
from registry.services.token_state import TokenState, token_state
from tests.time_limits import within
from verifier.services import cache_loader, state_cache
from verifier.services.cache_loader import MOST_LOADS
from verifier.services.cached_token import load_tokens
from verifier.services.clock_readings import ClockReading
from verifier.services.state_change_feed import Changes
from verifier.services.state_watcher import StateNews, StateReading
from verifier.tests.change_arguments import later_manifest
from verifier.tests.scene import PAY, READ, SYSTEM, Scene, scene
from verifier.tests.state_cache_harness import EVERYTHING, Followed, basic, followed, until

pytestmark = pytest.mark.django_db(transaction=True)

SOON = within(1.0)


@dataclass
class World:
    """Two unrelated grants: two tokens of the first, one of the second; all cached."""

    mine: Scene
    other: Scene
    first: str
    second: str
    third: str
    jtis: dict[str, str]


def issued(place: Scene) -> str:
    now = timezone.now()
    return tokens.issue_token(
        agent=place.agent, grant_id=str(place.grant.pk), actor=SYSTEM, now=now
    ).jti


@pytest.fixture
def world() -> World:
    mine, other = scene(), scene()
    first, second, third = issued(mine), issued(mine), issued(other)
    return World(
        mine, other, first, second, third, {first: "first", second: "second", third: "third"}
    )


@pytest.fixture
def process(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Followed]:
    with followed(monkeypatch) as made:
        until(lambda: heard_nothing(made), 60)
        for jti in world.jtis:
            known = made.state(jti)
            assert known is not None
            assert known.refusal(timezone.now()) is None
        for place in (world.mine, world.other):
            assert made.provider(basic(place)) == place.provider
        yield made


def heard_nothing(made: Followed) -> bool:
    """Whether the fixture's changes stopped arriving. An open transaction makes them repeat.

    Each look repeats them, so two whole looks must bring nothing, however late they come.
    """
    made.dropped.clear()
    # The first of them may have begun before.
    for _ in range(3):
        hears_of_a_look(made)
    return not made.dropped


def hears_of_a_look(made: Followed) -> None:
    last = made.cached_state._began
    until(lambda: made.cached_state._began is not last, 60)


def another_manifest(world: World) -> None:
    now = timezone.now()
    agent_manifests.replace_manifest(
        agent=world.mine.agent, manifest=later_manifest(world.mine, now), actor=SYSTEM, now=now
    )


def suspend_grant(world: World) -> None:
    grant = Grant.objects.get(pk=world.mine.grant.pk)
    cause = Grant.SuspensionCause.PERSON
    grants.suspend_grant(grant=grant, cause=cause, actor=SYSTEM, now=timezone.now())


def doing(
    service: Callable[..., Any], **arguments: Callable[[World], object]
) -> Callable[[World], None]:
    def act(world: World) -> None:
        made = {name: argument(world) for name, argument in arguments.items()}
        service(**made, actor=SYSTEM, now=timezone.now())

    return act


BOTH = {"first", "second"}
# Each act, the tokens it drops, and why they are refused then (None: they stay valid).
ACTS: dict[str, tuple[Callable[[World], None], set[str], str | None]] = {
    "token": (doing(tokens.revoke_token, jti=lambda w: w.first), {"first"}, "revoked"),
    "grant": (suspend_grant, BOTH, "grant_inactive"),
    "agent": (doing(agents.revoke_agent, agent=lambda w: w.mine.agent), BOTH, "agent_inactive"),
    "agent_suspended": (
        doing(agents.suspend_agent, agent=lambda w: w.mine.agent),
        BOTH,
        "agent_inactive",
    ),
    "human": (doing(humans.suspend_human, human=lambda w: w.mine.human), BOTH, "human_inactive"),
    "manifest": (another_manifest, BOTH, "grant_inactive"),
    "audience": (
        doing(
            service_providers.change_audience,
            service_provider=lambda w: w.mine.provider,
            audience=lambda _: "https://new.example",
        ),
        BOTH,
        "grant_inactive",
    ),
    # Every grant here was approved under this key.
    "receipt_key": (
        doing(
            disable_key,
            kid=lambda _: Key.objects.get(purpose="receipt").kid,
            even_last=lambda _: True,
        ),
        {"first", "second", "third"},
        "grant_inactive",
    ),
    "provider": (
        doing(
            service_providers.suspend_service_provider, service_provider=lambda w: w.mine.provider
        ),
        BOTH,
        "grant_inactive",
    ),
    "secret": (
        doing(service_providers.rotate_secret, service_provider=lambda w: w.mine.provider),
        BOTH,
        None,
    ),
}
TOUCH_THE_PROVIDER = {"audience", "provider", "secret"}


@pytest.mark.parametrize("name", ACTS)
def test_a_change_drops_what_rests_on_it_and_nothing_else(
    name: str, world: World, process: Followed
) -> None:
    act, dropped, refusal = ACTS[name]
    act(world)
    now = timezone.now()

    def gone() -> set[str]:
        return {short for jti, short in world.jtis.items() if process.held(jti) is None}

    until(lambda: gone() == dropped, SOON)
    assert process.holds_provider(basic(world.mine)) is (name not in TOUCH_THE_PROVIDER)
    assert process.holds_provider(basic(world.other))
    time.sleep(0.3)
    assert gone() == dropped
    for jti, short in world.jtis.items():
        known = process.state(jti)
        assert known is not None
        # A new read returns what the database store would read.
        assert known.refusal(now) == token_state(jti).refusal(now)
        assert known.refusal(now) == (refusal if short in dropped else None)


def test_a_change_that_is_rolled_back_is_never_told(world: World, process: Followed) -> None:
    before = process.held(world.first)
    with transaction.atomic():
        tokens.revoke_token(jti=world.first, actor=SYSTEM, now=timezone.now())
        transaction.set_rollback(True)
    process.dropped.clear()
    time.sleep(0.5)
    assert process.held(world.first) is before
    assert not process.dropped


def test_a_disabled_key_is_none_of_the_token_keys_and_drops_no_state(
    world: World, process: Followed
) -> None:
    key = Key.objects.get(purpose="token")
    assert set(process.call(process.cached_state.token_keys)) == {key.kid}
    rotate_key(purpose="token", actor=SYSTEM, now=timezone.now())
    until(lambda: len(process.call(process.cached_state.token_keys)) == 2, SOON)
    # A hook runs after the keys were replaced.
    told: list[bool] = []

    def hook(subject: str, subject_id: str) -> None:
        if (subject, subject_id) == (Subject.KEY, key.kid):
            told.append(key.kid in process.cached_state.token_keys())

    process.cached_state.hooks.append(hook)
    disable_key(kid=key.kid, actor=SYSTEM, now=timezone.now(), even_last=True)
    until(lambda: key.kid not in process.call(process.cached_state.token_keys), SOON)
    until(lambda: bool(told), SOON)
    assert True not in told
    assert all(process.held(jti) is not None for jti in world.jtis)


def test_credentials_are_held_only_while_they_are_good(world: World, process: Followed) -> None:
    place = world.mine
    assert process.provider(basic(place, "wrong" * 9)) is None
    assert not process.holds_provider(basic(place, "wrong" * 9))
    assert process.provider("Bearer x") is None
    assert process.provider("Basic \udcff") is None
    # An ended secret, a suspended provider and a revoked one.
    newest = [
        service_providers.rotate_secret(
            service_provider=place.provider, actor=SYSTEM, now=timezone.now()
        )
        for _ in range(2)
    ][-1]
    until(lambda: process.provider(basic(place)) is None, SOON)
    assert process.provider(basic(place, newest)) == place.provider
    for end in (
        service_providers.suspend_service_provider,
        service_providers.resume_service_provider,
        service_providers.revoke_service_provider,
    ):
        end(service_provider=place.provider, actor=SYSTEM, now=timezone.now())
        good = end is service_providers.resume_service_provider
        until(lambda good=good: (process.provider(basic(place, newest)) is not None) is good, SOON)  # type: ignore[misc]
    assert process.provider(basic(world.other)) == world.other.provider


def test_never_issued_token_has_no_owner_and_is_looked_up_each_time(
    world: World, process: Followed
) -> None:
    assert process.state("never") is None
    assert process.held("never") is None
    jti = issued(world.mine)
    assert process.state(jti) is not None


def test_tokens_that_are_over_are_given_up(world: World, process: Followed) -> None:
    late = timezone.now() + timedelta(hours=1)
    news = StateNews(look=StateReading(ClockReading.now(), process.cached_state.token_keys(), 0.0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timezone, "now", lambda: late)
        process.call(process.cached_state._hear, news)
    assert all(process.held(jti) is None for jti in world.jtis)
    assert process.holds_provider(basic(world.mine))


def test_what_is_held_answers_without_the_database(process: Followed, world: World) -> None:
    known = process.held(world.first)
    assert known is not None
    read = process.call(
        lambda: (
            known.refusal(timezone.now() + timedelta(days=400)),
            known.agent.name,
            known.agent.model_origin,
            known.grant_version,
        )
    )
    assert read[0] == "grant_inactive"
    assert known.terms.capabilities == parse_capabilities([READ])
    assert known.terms.light


@pytest.mark.parametrize(
    ("envelope", "light"),
    [
        ({"max_requests_per_minute": 60, "max_burst": 2}, True),
        ({"max_uses": 3}, False),
        ({"requires_human_online": True}, False),
        ({"budgets": [{"value": "5.00", "currency": "EUR", "period": "day"}]}, False),
    ],
    ids=str,
)
def test_an_envelope_is_light_that_counts_nothing_in_the_database(
    envelope: dict[str, Any], *, light: bool
) -> None:
    jti = issued(scene(PAY, **envelope))
    known = load_tokens([jti])[jti]
    assert not isinstance(known, Exception)
    assert known.terms.light is light


def test_terms_that_cannot_be_read_are_an_error_of_their_own_tokens_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    Grant.objects.filter(pk=world.mine.grant.pk).update(capabilities=[{"type": "nonsense"}])
    # No receipt covers them, so do not check receipts here.
    assert not isinstance(load_tokens(list(world.jtis))[world.first], Exception)
    monkeypatch.setattr(TokenState, "ends", ())
    known = load_tokens(list(world.jtis))
    assert isinstance(known[world.first], AgentAuthError)
    assert not isinstance(known[world.third], Exception)


class Paused:
    """A reader that pauses before it returns what it read."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.read = threading.Semaphore(0)
        self.go = threading.Semaphore(0)

    def __call__(self, keys: Any) -> Any:
        self.calls.append(list(keys))
        found = load_tokens(keys)
        self.read.release()
        assert self.go.acquire(timeout=60)
        return found

    __name__ = "paused"


@pytest.fixture
def paused(monkeypatch: pytest.MonkeyPatch) -> Paused:
    monkeypatch.setattr(cache_loader, "WAIT_SECONDS", 120.0)
    reader = Paused()
    monkeypatch.setattr(state_cache, "load_tokens", reader)
    return reader


def heard(process: Followed, subject: str, subject_id: str) -> None:
    until(lambda: (subject, subject_id) in process.dropped, SOON)


def asking(process: Followed, jti: str) -> Any:
    return asyncio.run_coroutine_threadsafe(process.cached_state.state(jti), process.loop)


def test_what_was_read_before_a_change_was_heard_is_read_again(
    world: World, paused: Paused, monkeypatch: pytest.MonkeyPatch
) -> None:
    with followed(monkeypatch) as process:
        asked = asking(process, world.first)
        assert paused.read.acquire(timeout=60)
        tokens.revoke_token(jti=world.first, actor=SYSTEM, now=timezone.now())
        heard(process, Subject.TOKEN, world.first)
        # The change arrives in several ways, but causes one more read in all.
        until(lambda: heard_nothing(process), 50)
        # A caller who asks only now must not get the old state either.
        late = asking(process, world.first)
        paused.go.release(2)
        for answer in (asked, late):
            assert answer.result(60).refusal(timezone.now()) == "revoked"
        assert paused.calls == [[world.first]] * 2
        held = process.held(world.first)
        assert held is not None
        assert held.refusal(timezone.now()) == "revoked"


def test_unrelated_change_causes_no_second_read(
    world: World, paused: Paused, monkeypatch: pytest.MonkeyPatch
) -> None:
    with followed(monkeypatch) as process:
        asked = asking(process, world.first)
        assert paused.read.acquire(timeout=60)
        tokens.revoke_token(jti=world.second, actor=SYSTEM, now=timezone.now())
        heard(process, Subject.TOKEN, world.second)
        paused.go.release()
        assert asked.result(60).refusal(timezone.now()) is None
        assert paused.calls == [[world.first]]
        assert process.held(world.first) is asked.result()


def test_state_that_never_stops_changing_is_unavailable(
    world: World, paused: Paused, monkeypatch: pytest.MonkeyPatch
) -> None:
    with followed(monkeypatch) as process:
        asked = asking(process, world.first)
        for _ in range(MOST_LOADS):
            assert paused.read.acquire(timeout=60)
            process.dropped.clear()
            with transaction.atomic():
                publish_change(Subject.TOKEN, world.first, now=timezone.now())
            heard(process, Subject.TOKEN, world.first)
            paused.go.release()
        with pytest.raises(TemporarilyUnavailableError):
            asked.result(60)
        assert process.held(world.first) is None


def test_everything_is_forgotten_by_who_lost_his_place_in_the_feed(
    world: World, process: Followed, monkeypatch: pytest.MonkeyPatch
) -> None:
    process.dropped.clear()
    monkeypatch.setattr(
        "verifier.services.state_watcher.state_since",
        lambda position, _seen: Changes((), position, complete=False),
    )
    until(lambda: all(process.held(jti) is None for jti in world.jtis), SOON)
    assert (EVERYTHING, "") in process.dropped
    assert not process.holds_provider(basic(world.mine))
