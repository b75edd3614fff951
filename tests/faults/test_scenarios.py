"""Faults under load: no proof passes twice, nothing acknowledged is lost, no answer is wrong.

CI runs the most important fault, for a short time; `make long` one other in rotation (FAULTS_SEED,
printed at the end, selects the same one again); `make campaign` runs all, and writes RESULTS.md:

- answers: all that clients were told, including those to replays and about revoked grants;
- unanswered: calls accepted during the fault but never answered, or refused a connection;
- good during, good after: percent of calls, as their callers see them, that ended with a yes or
  a refusal by the grant's own limits. Lost answers were asked for again, and a proof spent by a
  lost
  try was replaced (`clients.py`);
- back after: from the end of the fault to the first of twenty calls, all but one of them good;
- decisions lost: answered yes but not on record; never more than the log itself reports as missing;
- broken: promises, one sentence each (`reckoning.py`); the table is followed by a count per kind
  (`table.py`).

Percentages and recovery times are asserted only by the campaign: CI's few seconds are some sixty
calls on a busy machine. CI asserts the promises for each fault: none is broken, the system recovers
by itself, and every operation whose caller retries comes to a good end (`Load.finish`).
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests import redis_servers
from tests.actors import LivePerson
from tests.conftest import CAMPAIGN
from tests.faults import people
from tests.faults.breaking import clock_right
from tests.faults.cast import cast
from tests.faults.clients import PATIENCE_SECONDS, Answer, Load, Log
from tests.faults.outcome_checks import CUT_OFF_SECONDS, Count, reckon
from tests.faults.scenarios import (
    OF_A_CLUSTER,
    OF_A_REPLICA,
    OF_SENTINELS,
    SCENARIOS,
    Scenario,
    of_this_day,
)
from tests.faults.stage import Stage, stage
from tests.faults.table import SEED, Results, Row
from tests.time_limits import within
from tests.waiting import until

pytestmark = [pytest.mark.faults, pytest.mark.flow, pytest.mark.postgres, pytest.mark.redis]

# Before the fault and after recovery: long enough for every kind of call, and for replays.
WARM_SECONDS, AFTER_SECONDS = 2, 6 if CAMPAIGN else 4
# Once this many consecutive calls are good but for one, the fault is over for callers.
IN_A_ROW = 20
# Beside other tests a recovery takes longer.
BESIDE_OTHERS_SECONDS = 75
VICTIMS, PENDING = (8, 12) if CAMPAIGN else (3, 4)
# The system they run on: three Redis nodes, a Redis primary with replica, a PostgreSQL replica, or
# one of each.
KINDS = {
    "cluster": OF_A_CLUSTER,
    "sentinels": OF_SENTINELS,
    "replica": OF_A_REPLICA,
    "single": SCENARIOS,
}


@dataclass
class Season:
    """The stage for one kind of fault, and its state so far."""

    stage: Stage
    count: Count
    results: Results
    # The user who approves grants and confirms payments.
    person: LivePerson


@pytest.fixture(scope="module")
def season(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, results: Results
) -> Iterator[Season]:
    kind: str = request.param
    made_of: dict[str, Any] = {"cluster": redis_servers.cluster, "sentinels": redis_servers.watched}
    servers = made_of.get(kind, redis_servers.server)()
    with (
        servers as redis,
        stage(tmp_path_factory.mktemp(kind), redis, seed=20, replica=kind == "replica") as made,
    ):
        person = LivePerson(made.registry, "alice@example.org")
        yield Season(made, Count(0, 0), results, person)
        person.http.close()


def chosen() -> list[Any]:
    today = of_this_day(SEED)
    return [
        pytest.param(
            kind,
            each,
            id=each.name,
            marks=[
                *([pytest.mark.faketime] if each.heal is clock_right else []),
                *([] if each.in_ci else [pytest.mark.long]),
            ],
        )
        for kind, scenarios in KINDS.items()
        for each in scenarios
        if CAMPAIGN or each in today
    ]


@pytest.mark.parametrize(("season", "scenario"), chosen(), indirect=["season"])
def test_a_fault_under_load(season: Season, scenario: Scenario) -> None:
    """RF-1 RF-2 RF-3 RF-4 RF-5 RF-6 RF-8 RF-10 RF-12 RF-18 RF-21 RF-25 RF-30 EN-7 RV-3: see the
    table.

    One fault from a calm beginning to the reckoning.
    """
    held = season.stage
    held.be_in_an_epoch()
    company = cast(held, season.person, victims=VICTIMS, pending=PENDING)
    confirmed = next(agent for agent in company.agents if agent.kind == "confirmed")
    errands = [
        partial(people.approves, person=season.person, pending=company.pending),
        partial(people.confirms, person=season.person, agent=confirmed),
        partial(people.renews, agents=company.agents),
    ]
    at_start, kills = held.processes(), held.kills
    load = Load(held.servers, company.agents, company.victims, held.rng, errands)
    people.listen(load.log, season.person)
    with load:
        time.sleep(WARM_SECONDS)
        broke = time.monotonic()
        try:
            seconds = scenario.campaign_seconds if CAMPAIGN else scenario.seconds
            scenario.inject(held, seconds)
            # At the latest then the fault was in force: how long that took depends on the machine.
            stale = time.monotonic() - seconds + CUT_OFF_SECONDS
            if scenario.stale_at:
                until(
                    lambda: bool(asked_late(load.log, scenario, stale)),
                    "no call was answered late enough",
                )
        finally:
            healing = time.monotonic()
            scenario.heal(held)
        healed = time.monotonic()
        recovered = recovery(
            load.log,
            healed,
            scenario.within if CAMPAIGN else max(scenario.within, BESIDE_OTHERS_SECONDS),
        )
        time.sleep(AFTER_SECONDS)
        until(lambda: goes_forward(load.log), "users and agents make no progress")
        ended = time.monotonic()
    unfinished = load.finish()
    load.replay_all()
    until(lambda: held.waiting() == 0, "decisions stay in Redis")
    before = season.count
    season.count, broken = reckon(
        held, load.log, before, may_lose=scenario.may_lose, cut_off=scenario.cut_off
    )
    people.withdraws(company.pending)
    during = share(load.log, broke, healed)
    after = share(load.log, healed if recovered is None else healed + recovered, ended)
    row = Row(
        scenario.name,
        scenario.cases,
        healed - broke,
        len(load.log.answers) + len(load.log.replays) + len(load.log.watched),
        sum(each.status <= 0 and broke <= each.began <= healed for each in load.log.answers),
        during,
        after,
        recovered,
        held.kills - kills,
        season.count.missing - before.missing,
        broken,
    )
    season.results.rows.append(row)
    print(row.line(), *worst(load.log, broke, ended), sep="\n")
    assert broken == []
    assert unfinished == [], "operations that were asked about again and came to no good end"
    for since, to in ((broke, healed), (healed, ended)):
        assert any(since <= began <= to for began, *_ in load.log.calls)
    assert recovered is not None, f"no recovery within {scenario.within} s: {Path(held.directory)}"
    if CAMPAIGN:
        assert after >= scenario.good
        assert during >= scenario.good_during
    if scenario.stale_at:
        late = [each for each in asked_late(load.log, scenario, stale) if each.ended < healing]
        assert late
        assert {each.status for each in late} <= {503, 0}
    if scenario.none_lost:
        lost = [each for each in load.log.answers if each.status == 0]
        # On a busy machine a client may lose its patience: that is no broken connection.
        assert [each for each in lost if CAMPAIGN or each.seconds < PATIENCE_SECONDS] == []
    if scenario.told_within:
        took = [each.seconds for each in load.log.answers if each.status == 503]
        assert took
        assert max(took) < within(scenario.told_within)
    if scenario.b_refuses:
        # From its stop until it started with the wrong clock.
        of_b = [each for each in load.log.answers if each.where == "b" and broke <= each.began]
        down = next(each.began for each in of_b if each.status == -1)
        told = {each.status for each in of_b if down < each.began and each.ended < healing}
        assert 503 in told
        assert told <= {503, -1, 0}
    until(lambda: calm(held, at_start), "processes or files are left over")


def goes_forward(log: Log) -> bool:
    """Whether users and agents at the registry made progress too."""
    confirmed = any(each.yes and each.kind == "confirmed" for each in list(log.answers))
    return confirmed and all((log.registry, log.approved, log.tokens))


def asked_late(log: Log, scenario: Scenario, since: float) -> list[Answer]:
    """What servers answered that can know nothing new since then."""
    heard = (*log.answers, *log.watched)
    return [each for each in heard if each.where in scenario.stale_at and each.began > since]


def recovery(log: Log, healed: float, patience: float) -> float | None:
    """Seconds from the end of the fault to a row of good calls; None if there was none in time."""
    while time.monotonic() < healed + patience + 5:
        calls = sorted(call for call in log.calls if call[0] > healed)
        for first in range(len(calls) - IN_A_ROW + 1):
            row = calls[first : first + IN_A_ROW]
            if sum(good for _, _, good, _ in row) >= IN_A_ROW - 1:
                return row[0][0] - healed
        time.sleep(0.5)
    return None


def worst(log: Log, since: float, to: float) -> list[str]:
    """The most frequent errors: where, and when first and last."""
    bad = [each for each in log.answers if since <= each.began <= to and not each.good]
    alike: dict[tuple[str, int, str], list[float]] = {}
    for each in bad:
        said = each.body.get("reason") or each.body.get("error") or ""
        alike.setdefault((each.where, each.status, said), []).append(each.began - since)
    most = sorted(alike.items(), key=lambda entry: -len(entry[1]))[:8]
    return [
        f"  {len(when)} × {what}, from {when[0]:.1f} to {when[-1]:.1f} s" for what, when in most
    ]


def share(log: Log, since: float, to: float) -> float:
    """Percent of the calls begun in that time that came to a good end."""
    good = [each for began, _, each, _ in log.calls if since <= began <= to]
    return 100 * sum(good) / len(good) if good else 100.0


def calm(held: Stage, at_start: dict[str, int]) -> bool:
    """As many processes as before, and few more open files: connections are opened on demand."""
    now = held.processes()
    return all(
        now[name] <= count + (0 if "processes" in name else 40) for name, count in at_start.items()
    )
