"""The previous version and this one side by side under load, through an upgrade and back.

The steps are those of docs/upgrade.md. CI makes a few thousand calls, the campaign twenty thousand.
A call failed if the SDK's retries did not bring it to a good end (`callers.py`); broken promises
are listed apart: no version may accept anything spent or revoked.
"""

import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

from agentauth.protocol.keys import LocalSigner, PrivateKey
from tests import previous_release
from tests.actors import Scene, seeded
from tests.conftest import CAMPAIGN
from tests.faults.callers import Caller, Load, Provider, Record, Wires, client_of
from tests.faults.versions import (
    LockWatch,
    Release,
    Stage,
    printed,
    stage,
)
from tests.live import ROOT
from tests.waiting import until

pytestmark = [
    pytest.mark.faults,
    pytest.mark.flow,
    pytest.mark.postgres,
    pytest.mark.redis,
    pytest.mark.history,
]

# Kind → capability, limits, number of agents, and calls a second of each.
ROLES = {
    "light": ({"type": "read", "resource": "calendar"}, {}, 4, 8.0),
    "payment": (
        {
            "type": "transact",
            "resource": "payments",
            "max_amount": {"value": "50.00", "currency": "EUR"},
        },
        {"budgets": [{"value": "1000000.00", "currency": "EUR", "period": "day", "zone": "UTC"}]},
        4,
        5.0,
    ),
}
VICTIMS = 60
# Calls that each phase has at least before the next one begins.
CALLS = 3600 if CAMPAIGN else 150


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Stage]:
    with stage(tmp_path) as made:
        yield made


class Company:
    """Agents with approved grants, each with its own service provider, made by a given version."""

    def __init__(self, held: Stage, record: Record) -> None:
        self.held, self.record = held, record
        self.providers: dict[str, Provider] = {}

    def make(self, kinds: list[str], by: Release) -> list[tuple[Caller, Provider]]:
        wishes = [{"capabilities": [ROLES[kind][0]], "envelope": ROLES[kind][1]} for kind in kinds]
        told = seeded(by.web, "scenes", wishes)
        # The previous version's seeds approve without a signature, unlike its pages.
        seeded(by.web, "receipts", [each["grant_id"] for each in told], root=ROOT)
        return [self._made(kind, by, **each) for kind, each in zip(kinds, told, strict=True)]

    def _made(
        self, kind: str, by: Release, *, agent_pem: str, **told: str
    ) -> tuple[Caller, Provider]:
        place = Scene(
            registry=by.web, signer=LocalSigner(PrivateKey.from_pem(agent_pem.encode())), **told
        )
        provider = Provider(place, self.held.verify_url, self.record)
        self.providers[place.audience.rpartition("/")[2]] = provider
        client = client_of(
            place, agent_pem, self.held.url, self.held.directory, Wires(self.providers)
        )
        return Caller(kind, client, place, ROLES[kind][3]), provider


class Story:
    """The phases of one upgrade, each under load, and what they saw."""

    def __init__(self, held: Stage, load: Load, company: Company) -> None:
        self.held, self.load, self.company = held, load, company
        self.began: list[tuple[str, float]] = []

    def phase(self, name: str) -> None:
        """Calls from now on count for this phase."""
        self.began.append((name, time.monotonic()))

    def enough(self, calls: int = CALLS) -> None:
        """Wait until the phase has had this many calls."""
        _, began = self.began[-1]

        def had() -> bool:
            self.load.check()
            return len(self.load.record.between(began, time.monotonic())) >= calls

        until(had, "callers stand still", 600)

    def newcomers(self, by: Release) -> None:
        """Add people, agents and providers made by this version; they call from now on too."""
        for caller, provider in self.company.make(["light", "payment"], by):
            self.load.add(caller, provider)

    def lines(self) -> list[str]:
        ends = [*(began for _, began in self.began[1:]), time.monotonic()]
        found = []
        for (name, began), end in zip(self.began, ends, strict=True):
            calls = self.load.record.between(began, end)
            failed = Counter(f"{call.kind}: {call.trouble}"[:200] for call in calls if call.trouble)
            slowest = max((call.ended - call.began for call in calls), default=0.0)
            found.append(
                f"{name}: {end - began:.1f} s, {len(calls)} calls, {failed.total()} failed, "
                f"slowest {slowest:.1f} s"
            )
            found += [f"    {times} × {what}" for what, times in failed.most_common(5)]
        return found


@pytest.mark.long
def test_two_versions_run_together_through_an_upgrade_and_back(
    installation: Stage, tmp_path: Path
) -> None:
    """Old alone; migrations and grants below it; both; new alone; both; old alone on new tables."""
    held, record = installation, Record()
    old = Release("old", previous_release.unpack(tmp_path / "previous"), held)
    new = Release("new", ROOT, held)
    prepare(held, old)
    company = Company(held, record)
    acting = company.make(
        [kind for kind, (*_, count, _) in ROLES.items() for _ in range(count)], old
    )
    victims = company.make(["light"] * VICTIMS, old)
    with Load(acting, victims, held.endpoints, record, random.Random(12)) as load:
        story = Story(held, load, company)
        try:
            upgrade_and_go_back(held, old, new, story)
        finally:
            print(
                *story.lines(), f"asked again: {dict(record.replays)}", *record.wrong[:20], sep="\n"
            )
    assert record.wrong == []
    assert len(record.calls) >= (20_000 if CAMPAIGN else 1_000)
    assert [call for call in record.calls if call.trouble] == []
    until(
        lambda: held.waiting() == 0, "decisions stay in Redis: the old jobs do not take them over"
    )
    until(
        lambda: held.unnumbered() == 0,
        "events stay without a number: the old jobs do not number them",
    )
    assert oracle(new.web.env, record.decisions | record.light, record.revoked) == []


def prepare(held: Stage, old: Release) -> None:
    """The old version as an operator installed it, with the replay cache in Redis."""
    for line in (
        "python manage.py migrate",
        "python manage.py grant_serving_role",
        "python manage.py grant_verifier_role ROLE",
    ):
        old.command(line)
    old.command("python manage.py ensure_keys")
    held.join(old)
    held.be_in_an_epoch()


def upgrade_and_go_back(held: Stage, old: Release, new: Release, story: Story) -> None:
    home = held.home()
    story.phase("old alone")
    story.enough()
    commands = printed("An upgrade")
    assert any("migrate" in line for line in commands)
    with LockWatch(held) as watch:
        for line in commands:
            story.phase(f"old, beneath it `{line}`")
            new.command(line)
            story.enough(CALLS // 5)
    print(*watch.lines(), sep="\n")
    assert (old.beyond(), new.beyond()) == ("", "")
    story.phase("both")
    held.join(new)
    story.newcomers(new)
    story.enough()
    story.phase("new alone")
    held.leave(old)
    story.enough()
    story.phase("both, going back")
    held.join(old)
    story.newcomers(new)
    story.newcomers(old)
    story.enough()
    story.phase("old alone on the new tables")
    held.leave(new)
    story.enough()
    # No verifier had a reason to leave Redis: both versions agree about it.
    assert held.home() == home


def oracle(env: Mapping[str, str], decisions: Iterable[str], revoked: Iterable[str]) -> list[str]:
    """Run tests/oracle.py in this version's code: the records against what callers were told."""
    told = {"decisions": sorted(decisions), "revoked": sorted(revoked)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.oracle", "-"],
        cwd=ROOT, env=env, input=json.dumps(told), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    return (
        [] if done.returncode == 0 else [*done.stdout.splitlines(), *done.stderr.splitlines()[-3:]]
    )
