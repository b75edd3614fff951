"""Delegated signing: each process signs with its own key, and a killed one leaves no usable key.

libfaketime lets two minutes pass at once. `CAMPAIGN=1` kills as many processes as a host may hold
certified keys.
"""

import base64
import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import time_machine

from agentauth.protocol.key_set import read_key_set
from agentauth.protocol.token import verify_token
from kms.lifetimes import PUBLISHED_BEFORE_USE
from kms.process_key_certificates import CERTIFIED_FOR, MOST_PER_PROCESS
from tests import faketime
from tests.actors import Scene, scenes
from tests.conftest import CAMPAIGN
from tests.live import LiveRegistry
from tests.waiting import until

pytestmark = [pytest.mark.flow, pytest.mark.faketime]

READ = {"type": "read", "resource": "calendar"}
WORKERS = 2
BOUND = MOST_PER_PROCESS * WORKERS
KILLS = BOUND if CAMPAIGN else 1
SECONDS = 60


@dataclass
class Delegated:
    """A registry with two processes that sign by themselves, and their common clock."""

    registry: LiveRegistry
    place: Scene
    file: Path
    clock: time_machine.Traveller
    shifted: int = 0

    def later(self, seconds: float) -> None:
        self.shifted += int(seconds) + 1
        # Atomic: a process that read half of the file at this moment would exit.
        new = self.file.with_suffix(".new")
        new.write_text(f"+{self.shifted}\n")
        new.replace(self.file)
        self.clock.shift(int(seconds) + 1)

    def published(self) -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(
            f"{self.registry.url}/.well-known/jwks.json", timeout=SECONDS
        ).json()
        return found

    def certified(self) -> dict[int, str]:
        """Process → its certified key."""
        keys = [key for key in self.published()["keys"] if "certificate" in key]
        return {
            int(part(key["certificate"], 1)["instance"].rpartition(":")[2]): key["kid"]
            for key in keys
        }

    def issued(self) -> dict[str, str]:
        """Key → a token it signed; several calls at once, so that each process gets one."""
        with ThreadPoolExecutor(8) as pool:
            tokens = list(pool.map(lambda _: self.place.token(), range(8)))
        return {part(token, 0)["kid"]: token for token in tokens}

    def issued_by(self, kids: set[str]) -> dict[str, str]:
        """Issue tokens until each of these keys has signed."""
        found: dict[str, str] = {}
        until(lambda: found.update(self.issued()) or kids <= set(found))
        return found

    def assert_good(self, token: str) -> None:
        """The verifier and a reader of the key set both accept the token."""
        assert self.place.ask(self.place.question(token, READ)).json()["valid"] is True
        issuer = self.registry.url
        keys = read_key_set(self.published(), expected_issuer=issuer)
        verify_token(
            token,
            keys=keys,
            expected_issuer=issuer,
            expected_audience=self.place.audience,
            now=int(time.time()),
        )


def part(compact: str, index: int) -> dict[str, Any]:
    text = compact.split(".")[index]
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    return found


@pytest.fixture
def delegated(tmp_path: Path) -> Iterator[Delegated]:
    clock = tmp_path / "clock"
    clock.write_text("+0\n")
    env = {
        "TOKEN_SIGNING": "delegated",
        "LD_PRELOAD": faketime.LIBRARY,
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
    }
    registry = LiveRegistry(tmp_path, workers=WORKERS, env=env)
    registry.prepare()
    (place,) = scenes(registry, [{"capabilities": [READ], "envelope": {}}])
    registry.start()
    with time_machine.travel(datetime.now(UTC), tick=True) as traveller:
        yield Delegated(registry, place, clock, traveller)
    registry.stop()


def kill_one(delegated: Delegated, dead: set[str]) -> None:
    """Kill the oldest process with a certified key; wait for its successor, if the host may have
    one.
    """
    certified = delegated.certified()
    victim = min(pid for pid, kid in certified.items() if kid not in dead)
    dead.add(certified[victim])
    os.kill(victim, signal.SIGKILL)
    # The token key signs until the next certified key is usable.
    until(
        lambda: (
            not set(delegated.issued()) & dead
            and (len(certified) == BOUND or len(delegated.certified()) > len(certified))
        )
    )


@pytest.mark.long
def test_KM_10_each_process_signs_with_its_own_key_until_it_is_killed(
    delegated: Delegated,
) -> None:
    # The token key signs until each process has a certified key that all readers can know.
    first: dict[str, str] = {}
    until(lambda: first.update(delegated.issued()) or len(delegated.certified()) == WORKERS)
    [root] = first
    delegated.later(PUBLISHED_BEFORE_USE.total_seconds())
    at_first = delegated.certified()
    tokens = delegated.issued_by(set(at_first.values()))
    # A process may publish its key a moment before it holds it, and until then the token key signs;
    # but once both have signed by themselves, nothing else does.
    assert set(tokens) - {root} == set(at_first.values())
    assert set(delegated.issued()) <= set(at_first.values())
    for token in tokens.values():
        delegated.assert_good(token)

    dead: set[str] = set()
    for _ in range(KILLS):
        kill_one(delegated, dead)
    assert len(delegated.certified()) <= BOUND
    survivor = set(at_first.values()) - dead
    if not CAMPAIGN:
        # Tokens by the dead process's key stay valid, and it signs no more.
        delegated.later(PUBLISHED_BEFORE_USE.total_seconds())
        delegated.assert_good(tokens[next(iter(dead))])
        [follower] = set(delegated.certified().values()) - dead - survivor
        # The token key signs for a process that has not yet seen its certificate become usable.
        assert set(delegated.issued_by({follower, *survivor})) - {root} == {
            follower,
            *survivor,
        }
    # And its certificate is soon gone.
    delegated.later(CERTIFIED_FOR.total_seconds())
    until(lambda: set(delegated.issued()) == {root} and len(delegated.certified()) == WORKERS)
    assert not set(delegated.certified().values()) & dead
