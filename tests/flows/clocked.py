"""A registry with a movable clock, a service provider, and a user who decides."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import time_machine

from agentauth import AgentAuthClient, Capability
from agentauth.sdk import Action, Money, VerifierClient
from tests import faketime
from tests.live import LiveRegistry

READ = Capability.read("calendar")
WRITE = Capability.write("files")
PAY = Capability.transact("payments", max_amount=("50.00", "EUR"))
READING = Action("read", "calendar/work")
PAYING = Action("transact", "payments", Money.of("20.00", "EUR"))


@dataclass
class Place:
    """A registry, a service provider, a user who decides, and their common clock."""

    registry: LiveRegistry
    provider: dict[str, str]
    file: Path
    clock: time_machine.Traveller
    person: Callable[..., Any]
    shifted: int = 0

    @property
    def slug(self) -> str:
        return self.provider["slug"]

    def later(self, by: timedelta) -> None:
        self.shifted += int(by.total_seconds())
        # Atomic: a process reading the clock at this moment finds the old file or the new one.
        new = self.file.with_suffix(".new")
        new.write_text(f"+{self.shifted}\n")
        new.replace(self.file)
        self.clock.shift(by)

    def decide(self, act: str, grant_id: str, **wish: Any) -> None:
        """What a user does on a page; see tests/decide.py."""
        self.person(act, grant_id, **wish)

    def granted(self, client: AgentAuthClient, *capabilities: Capability) -> str:
        """The id of a grant that the agent asked for and the user approved."""
        grant = asyncio.run(client.request_grant(self.slug, capabilities))
        assert grant.status == "pending"
        self.decide("approve", grant.grant_id)
        return grant.grant_id

    def verified(self, client: AgentAuthClient, action: Action = READING) -> str:
        """The grant under which the service provider allows the action."""
        headers = asyncio.run(
            client.authenticate_headers(self.slug, "POST", "/api/events", action=action)
        )
        with VerifierClient(
            self.registry.url,
            self.provider["client_id"],
            self.provider["client_secret"],
            timeout=60,
        ) as verifier:
            allowed = verifier.verify(
                token=headers["Authorization"].removeprefix("DPoP "),
                proof=headers["DPoP"],
                method="POST",
                url=f"{self.registry.services}/api/events",
                action=action,
                idempotency_key="payment" if action.amount else None,
            )
        return allowed.grant_id


@contextmanager
def clocked_place(folder: Path) -> Iterator[Place]:
    """The registry runs in `folder`; its clock and this process's move together."""
    clock = folder / "clock"
    clock.write_text("+0\n")
    env = {
        "LD_PRELOAD": faketime.LIBRARY,
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
    }
    registry = LiveRegistry(folder, workers=2, env=env)
    registry.prepare()
    registry.start()
    allowed = [capability.label for capability in (READ, WRITE, PAY)]
    provider = registry.manage(
        "create_service_provider",
        "Acme",
        "--audience",
        f"{registry.services}/api",
        "--allow",
        *allowed,
    )
    with (
        registry.person() as person,
        time_machine.travel(datetime.now(UTC), tick=True) as traveller,
    ):
        yield Place(registry, provider, clock, traveller, person)
    registry.stop()
