"""Everything an operator changes in a running system, under calls of the SDK.

Verifications are made through a deploy with a migration and back, a rotation of the signing keys,
failovers of Redis and PostgreSQL, renewals of the proxy's certificate and restarts of PgBouncer. A
call failed if it got a wrong answer, or if the SDK's documented retries did not bring it to a good
end. `test_changes.py` runs this.
"""

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from agentauth.sdk import VerifierClient
from benchmarks.cpu_time import machine
from tests import previous_release
from tests.actors import Scene
from tests.faults.callers import Caller, Load, Provider, Record
from tests.faults.change_stage import (
    PROBES,
    ChangeStage,
    Host,
    ProbeKind,
    Probes,
    change_stage,
)
from tests.faults.table import commit
from tests.faults.test_two_versions import Company, oracle, prepare
from tests.faults.versions import printed
from tests.live import ROOT
from tests.waiting import until

KINDS = {"light": 12, "payment": 8}
# Each of them calls this often (calls a second).
PER_SECOND = 12.0
# Every fourth service provider asks a web server, which uses the pooler, instead of the verifier.
AT_WEB = 4
# Of all calls, those that each change must have at least.
SHARES = {"deploy": 0.05, "keys": 0.1, "redis": 0.13, "postgres": 0.15, "rest": 0.1}
# A fault is repeated until its calls are made, with a pause for everything to settle.
PAUSE_SECONDS = 25
# A new key is published this long before it signs, with some to spare.
KEY_SECONDS = 150
PATIENCE_SECONDS = 1800


Pairs = list[tuple[Caller, Provider]]


@dataclass
class Change:
    """One kind of change: when it began and ended, and when each act of it began."""

    name: str
    began: float
    acts: list[float] = field(default_factory=list)
    ended: float = 0.0


@dataclass
class Story:
    """What is done to the system, one change after the other, and what callers saw meanwhile."""

    held: ChangeStage
    load: Load
    probes: Probes
    calls: int
    changes: list[Change] = field(default_factory=list)

    def change(self, name: str, share: str, *acts: Callable[[], object]) -> None:
        """Do these acts once, each followed by its share of calls."""
        made = self._begin(name)
        for act in acts:
            self._act(made, act)
            self._enough(time.monotonic(), self.calls * SHARES[share] / len(acts))
        made.ended = time.monotonic()

    def repeat(self, name: str, share: str, act: Callable[[], object]) -> None:
        """Do this act again and again until the change has had its share of calls."""
        made = self._begin(name)
        while True:
            self._act(made, act)
            time.sleep(PAUSE_SECONDS)
            if self.verified(made.began) >= self.calls * SHARES[share]:
                break
        made.ended = time.monotonic()

    def rest(self) -> None:
        """Nothing is changed until all calls are made."""
        made = self._begin("nothing")
        self._enough(0, self.calls)
        made.ended = time.monotonic()

    def verified(self, since: float) -> int:
        self.load.check()
        return sum(call.kind in KINDS for call in self.load.record.between(since, time.monotonic()))

    def _begin(self, name: str) -> Change:
        self.changes.append(Change(name, time.monotonic()))
        print(f"{datetime.now(UTC):%H:%M:%S} {name}", flush=True)
        return self.changes[-1]

    def _act(self, made: Change, act: Callable[[], object]) -> None:
        made.acts.append(time.monotonic())
        act()

    def _enough(self, since: float, calls: float) -> None:
        end = time.monotonic() + PATIENCE_SECONDS
        while self.verified(since) < calls:
            assert time.monotonic() < end, "callers stand still"
            time.sleep(2)


@dataclass
class Report:
    """What one run saw. `failed`: each broken promise and each call without a good end."""

    calls: int
    failed: list[str]
    text: str


def run(calls: int, directory: Path) -> Report:
    """Make `calls` verifications through all changes. Its files are in `directory`."""
    began, record = datetime.now(UTC), Record()
    with change_stage(directory) as held:
        old = Host("old", previous_release.unpack(directory / "previous"), held)
        new = Host("new", ROOT, held)
        prepare(held, old)
        acting, victims, places = cast(held, old, record, calls)
        rng = random.Random(24)
        with (
            Load(acting, victims, held.endpoints, record, rng, replay_every=1) as load,
            Probes(held, places) as probes,
        ):
            story = Story(held, load, probes, calls)
            try:
                all_changes(story, old, new)
            finally:
                print(*table(story), *troubles(record), *record.wrong[:20], sep="\n", flush=True)
        losses = losses_of(held, new, record)
    wrong = [*record.wrong, *probes.odd, *losses.broken]
    made = story.verified(0)
    return Report(made, [*wrong, *troubles(record)], page(story, wrong, losses, began))


def cast(
    held: ChangeStage, by: Host, record: Record, calls: int
) -> tuple[Pairs, Pairs, dict[ProbeKind, Scene]]:
    """Callers, agents whose grants will be revoked, and the places of the probes."""
    company = Company(held, record)
    acting = company.make([kind for kind, count in KINDS.items() for _ in range(count)], by)
    for number, (caller, provider) in enumerate(acting):
        caller.per_second = PER_SECOND
        if number % AT_WEB == 0:
            place = provider.place
            provider.client = VerifierClient(held.url, place.client_id, place.client_secret)
    # One is revoked every 1.5 s, while there are any.
    victims = company.make(["light"] * min(400, calls // 100), by)
    kinds = ["payment" if kind.pays else "light" for kind in PROBES]
    probing = [caller.place for caller, _ in company.make(kinds, by)]
    return acting, victims, dict(zip(PROBES, probing, strict=True))


def all_changes(story: Story, old: Host, new: Host) -> None:
    held = story.held
    migrate = [lambda line=line: new.command(line) for line in printed("An upgrade")]
    story.change("the old version alone", "deploy", lambda: None)
    story.change("the migration beneath it", "deploy", *migrate)
    join, leave = (lambda: held.join(new)), (lambda: held.leave(old))
    story.change("deploy: the new version joins, the old one leaves", "deploy", join, leave)
    back, gone = (lambda: held.join(old)), (lambda: held.leave(new))
    story.change("going back: the old version on the new tables", "deploy", back, gone)
    story.change("deploy again", "deploy", join, leave)
    story.change("rotation of the three signing keys", "keys", lambda: rotate(held, new))
    story.repeat("Redis dies, its replica takes over", "redis", held.fail_over_redis)
    story.repeat("PostgreSQL dies, its replica takes over", "postgres", held.fail_over_database)
    story.repeat("the certificate is renewed, nginx reloads", "rest", held.renew_certificate)
    story.repeat("PgBouncer restarts", "rest", held.pooler.restart)
    story.rest()


def rotate(held: ChangeStage, by: Host) -> None:
    """Publish the next key of each purpose, and wait until it signs."""
    before = {purpose: held.kid(purpose) for purpose in ("token", "receipt", "audit")}
    for purpose in before:
        by.command(f"python manage.py rotate_key {purpose}")
    for purpose, kid in before.items():
        until(partial(has_another_key, held, purpose, kid), f"{purpose} keeps its key", KEY_SECONDS)


def has_another_key(held: ChangeStage, purpose: str, kid: str) -> bool:
    return held.kid(purpose) != kid


@dataclass
class Losses:
    """Light decisions that are not on record, as many as the log reports; and broken promises."""

    missing: int
    stated: int
    broken: list[str]


def losses_of(held: ChangeStage, new: Host, record: Record) -> Losses:
    """Compare what callers were told with the records, and the log with its copies outside."""
    until(lambda: held.waiting() == 0, "decisions stay in Redis")
    until(lambda: held.unnumbered() == 0, "events stay without a number")
    missing, stated = held.count_missing(record.light), held.reported_losses()
    found = [] if missing <= stated else [f"{missing} light decisions lost, {stated} reported"]
    # The role's time limits are for requests.
    env = new.jobs.env | {"DATABASE_URL": held.superuser_url}
    found += oracle(env, record.decisions, record.revoked)
    done = subprocess.run(
        [sys.executable, "manage.py", "verify_audit", "--full", "--json"],
        cwd=ROOT, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode or not json.loads(done.stdout)["ok"]:
        found.append(f"verify_audit: {done.stdout[-500:]}{done.stderr[-500:]}")
    return Losses(missing, stated, found)


def troubles(record: Record) -> list[str]:
    """Calls that the SDK's retries did not bring to a good end."""
    found = Counter(f"{call.kind}: {call.trouble}"[:200] for call in record.calls if call.trouble)
    return [f"{times} × {what}" for what, times in found.most_common(20)]


def table(story: Story) -> list[str]:
    """A row for each change."""
    columns = ["change", "times", "for s", "calls", "payments", "failed", "slowest call s"]
    columns += [f"503 of {kind.name} s" for kind in PROBES] + ["normal again after s"]
    rows = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return rows + ["| " + " | ".join(cells(story, each)) + " |" for each in story.changes]


def cells(story: Story, change: Change) -> list[str]:
    to = change.ended or time.monotonic()
    calls = story.load.record.between(change.began, to)
    kinds = Counter(call.kind for call in calls)
    slowest = max((call.ended - call.began for call in calls), default=0.0)
    found = [probe.windows(change.began, to) for probe in story.probes.all]
    longest = [max((end - at for at, end in windows), default=0.0) for windows in found]
    return [
        change.name,
        str(len(change.acts)),
        f"{to - change.began:.0f}",
        f"{kinds['light'] + kinds['payment']:,}",
        f"{kinds['payment']:,}",
        str(sum(bool(call.trouble) for call in calls)),
        f"{slowest:.1f}",
        *(f"{seconds:.1f}" for seconds in longest),
        f"{recovery(change.acts, [each for windows in found for each in windows]):.1f}",
    ]


def recovery(acts: list[float], windows: list[tuple[float, float]]) -> float:
    """The longest time from an act to the end of the last window before the next act (s)."""
    ends = [
        end - max(act for act in acts if act <= at)
        for at, end in windows
        if any(act <= at for act in acts)
    ]
    return max(ends, default=0.0)


HEAD = """# What changes do to callers

{date}, {machine}, load average {load:.1f}, commit {commit}.
Written by `CHANGES_CALLS={asked} python -m pytest tests/faults/test_changes.py`; `changes.py` says
what is done.

"503 of …" is the longest time for which a probe, which asks five times a second and never retries,
got 503 or no answer. "Normal again": from the act to the end of the last such time before the next
act. A busy machine sheds single calls at any time, and these count too.

"""
TAIL = """
**{calls:,} verifications, {payments:,} of them payments; {tokens:,} tokens, {revocations:,}
revocations. Wrong: {wrong}. Failed: {failed}.** {replays:,} replays and calls with revoked grants
were made besides. With Redis {missing} light decisions were lost, and the log reports {stated}. The
replica of PostgreSQL was synchronous; `tests/faults/test_backup_drill.py` says what an asynchronous
one loses.
"""


def page(story: Story, wrong: list[str], losses: Losses, began: datetime) -> str:
    """The report as CHANGES.md."""
    record = story.load.record
    kinds = Counter(call.kind for call in record.calls)
    head = HEAD.format(
        date=f"{began:%Y-%m-%d}, {began:%H:%M} to {datetime.now(UTC):%H:%M} UTC",
        machine=machine(),
        load=os.getloadavg()[2],
        commit=commit(),
        asked=story.calls,
    )
    tail = TAIL.format(
        calls=kinds["light"] + kinds["payment"],
        payments=kinds["payment"],
        tokens=kinds["token"],
        revocations=kinds["revocation"],
        wrong=len(wrong),
        failed=sum(bool(call.trouble) for call in record.calls),
        replays=record.replays.total(),
        missing=losses.missing,
        stated=losses.stated,
    )
    bad = "".join(f"- {each}\n" for each in (*wrong, *troubles(record)))
    return head + "\n".join(table(story)) + "\n" + tail + (f"\n{bad}" if bad else "")
