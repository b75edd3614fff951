"""Measures the bytes and the CPU of each act, and the memory of each process: `python -m
benchmarks.footprint`.

Real PostgreSQL and Redis, rows written by the services. Bytes are of tables with their indexes
after VACUUM, and of what the archiver wrote. Agents beyond the first are copies
(benchmarks/many_agents.py), to see whether their rows grow linearly.
"""

import argparse
import itertools
import os
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import django
import psycopg
from redis import Redis

from benchmarks import issuance, verify
from benchmarks.cpu_time import check_us, cpu_seconds, machine, pids_of
from benchmarks.load_generation import Question
from benchmarks.open_loop import open_loop
from benchmarks.result_file import RESULTS, write_result
from benchmarks.system_under_test import MeasuredSystem, place
from tests.actors import LivePerson, seeded

# Redis decides what their agents do; under TERMS, with a budget, the database does.
READS: Final[dict[str, Any]] = {"capabilities": [verify.READ], "envelope": {}, "alg": "EdDSA"}
TERMS: Final[dict[str, Any]] = {
    "capabilities": [verify.READ, verify.MAY_PAY],
    "envelope": {"budgets": [verify.BUDGET]},
    "alg": "EdDSA",
}
HOW: Final = argparse.Namespace(connections=16, seconds=60, pin=False)
TOKENS_PER_SECOND: Final = 50
# Below this many bytes for each act, a table grew by accident, such as one page of a job's rows.
NOTICED: Final = 1.0


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes by table, with indexes; of the WAL; of the archive by kind of object; and events."""

    tables: dict[str, int]
    wal: int
    archive: dict[str, int]
    events: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=4_000, help="verifications, and payments")
    parser.add_argument("--agents", type=int, default=200, help="agents by the services")
    parser.add_argument("--copies", type=int, nargs="+", default=[1_000, 4_000])
    parser.add_argument("--approvals", type=int, default=20)
    parser.add_argument("--json", type=Path, default=RESULTS / "footprint.json")
    given = parser.parse_args()
    os.environ.pop("DATABASE_URL", None)
    print(machine(), flush=True)
    check = check_us()
    with place(database="postgres", lean=True, wish={"agents": 50, **READS}) as there:
        there.registry.start()
        try:
            for figures in measure(there, given):
                write_result(given.json, figures, check_us=check)
        finally:
            there.registry.stop()


def measure(there: MeasuredSystem, given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Everything, one act after the other: the figures so far, before and after each copying."""
    figures: dict[str, Any] = {"memory_bytes_idle": memory(there)}
    # First: later, proofs of earlier calls would expire meanwhile.
    figures["redis"] = in_redis(there)
    acts = figures["acts"] = {}
    reads = partial(ask, there, verify.READING, given)
    acts["verification"], last = counted(there, sizes(there), given.calls, reads)
    crowd = partial(register, there, given.agents)
    acts["agent_by_services"], last = counted(there, last, given.agents, crowd)
    acts["token"], _ = counted(there, last, given.agents, partial(tokens, there, given.agents))
    person, pending = asked(there, given.approvals)
    approvals = partial(approve, there, person, pending)
    acts["approval"], _ = counted(there, sizes(there), len(pending), approvals)
    # Their tokens do not belong to a payment.
    there.people()
    pays = partial(ask, there, Question(verify.PAY, operation=True), given)
    acts["payment"], last = counted(there, sizes(there), given.calls, pays)
    figures["memory_bytes_after"] = memory(there)
    figures["copies"] = []
    yield figures
    for count in given.copies:
        copies = {"agent_id": there.crowd["agents"][0]["agent_id"], "count": count, "alg": "EdDSA"}
        copy = partial(there.registry.act, "benchmarks.many_agents", "agents", copies)
        copied, last = counted(there, last, count, copy)
        figures["copies"].append({"count": count, "table_bytes": copied["table_bytes"]})
        yield figures


def counted(
    there: MeasuredSystem, before: Sizes, number: int, act: Callable[[], Any]
) -> tuple[dict[str, Any], Sizes]:
    """What `number` acts left behind, for each: bytes by place, events; and what `act` measured.

    Also returns the sizes afterwards.
    """
    measured = act()
    after = sizes(there)
    tables = Counter(after.tables)
    tables.subtract(before.tables)
    archive = {name: after.archive[name] - before.archive.get(name, 0) for name in after.archive}
    events = after.events - before.events
    found: dict[str, Any] = {
        "number": number,
        "events": round(events / number, 3),
        "table_bytes": {
            name: round(grown / number, 1)
            for name, grown in tables.most_common()
            if grown / number > NOTICED
        },
        "wal_bytes": round((after.wal - before.wal) / number),
        "archive_bytes_per_event": {
            name: round(grown / max(1, events), 1) for name, grown in archive.items()
        },
    }
    if isinstance(measured, dict) and "cpu_us" in measured:
        found |= measured
    print(found, flush=True)
    return found, after


def sizes(there: MeasuredSystem) -> Sizes:
    """All sizes, once every event is numbered, signed and archived, and tables are vacuumed."""
    settle(there)
    there.registry.act("benchmarks.footprint", "archive", None)
    with psycopg.connect(there.registry.env["DATABASE_URL"], autocommit=True) as asking:
        asking.execute("VACUUM")
        rows = asking.execute(
            "SELECT relname, pg_total_relation_size(oid) FROM pg_class"
            " WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
        ).fetchall()
        [(wal,)] = asking.execute("SELECT pg_current_wal_lsn() - '0/0'::pg_lsn").fetchall()
        [(events,)] = asking.execute("SELECT size FROM audit_head").fetchall()
    tables: Counter[str] = Counter()
    for name, size in rows:
        # The months of a table count together.
        tables[re.sub(r"_(20\d\d_\d\d|early|late)$", "", name)] += size
    return Sizes(dict(tables), int(wal), archive_bytes(there.directory / "audit"), events)


def settle(there: MeasuredSystem) -> None:
    """Wait until Redis holds no event and each event has a number. Raises RuntimeError."""
    deadline = time.monotonic() + 120
    redis: Any = Redis.from_url(there.registry.env["REDIS_URL"])
    with psycopg.connect(there.registry.env["DATABASE_URL"], autocommit=True) as asking:
        seen = -1
        while time.monotonic() < deadline:
            [(waiting, events)] = asking.execute(
                "SELECT (SELECT count(*) FROM audit_queueentry), (SELECT size FROM audit_head)"
            ).fetchall()
            waiting += sum(redis.xlen(key) for key in redis.scan_iter(_type="stream"))
            if not waiting and events == seen:
                return
            seen = events
            # The outbox takes over events each second.
            time.sleep(2.5)
    raise RuntimeError("the log did not come to rest")


def archive_bytes(folder: Path) -> dict[str, int]:
    """Bytes in the external store by kind of object."""
    kinds: Counter[str] = Counter()
    for path in folder.rglob("*"):
        if path.is_file():
            kind = path.name.partition(".")[2] if path.parent.name == "objects" else ""
            kinds[kind or path.relative_to(folder).parts[0]] += path.stat().st_size
    return dict(kinds)


def register(there: MeasuredSystem, number: int) -> None:
    """New agents with approved grants, which act from now on."""
    there.crowd = seeded(there.registry, "crowd", {**TERMS, "agents": number})
    there.tokens = []


def tokens(there: MeasuredSystem, number: int) -> dict[str, Any]:
    """Tokens over HTTP at a steady rate; CPU µs of each."""
    url, agents = there.registry.url, there.crowd["agents"]
    requests = issuance.signed(url, agents, calls=number, rate=TOKENS_PER_SECOND)
    answers = issuance.Answers()
    groups = web_groups(there)
    before = cpu_seconds(groups)
    open_loop(url, requests, rate=TOKENS_PER_SECOND, batch=1, connections=16, tell=answers.tell)
    if (issued := len(answers.times("201"))) != number:
        raise RuntimeError(f"{issued} of {number} tokens were issued")
    return cpu_of(groups, before, number)


class Approver(LivePerson):
    """Keeps the token against CSRF; LivePerson opens a page for it before each call."""

    token = ""

    def keep_token(self) -> None:
        self.token = super()._csrf()

    def _csrf(self) -> str:
        return self.token or super()._csrf()


def asked(there: MeasuredSystem, number: int) -> tuple[Approver, list[str]]:
    """A person with a browser, and grants that wait for their decision."""
    email = "footprint@example.org"
    person = Approver(there.registry, email)
    wish = {"capabilities": TERMS["capabilities"], "envelope": TERMS["envelope"], "owner": email}
    person.keep_token()
    made = seeded(there.registry, "scenes", [wish] * number)
    return person, [each["grant_id"] for each in made]


def approve(there: MeasuredSystem, person: Approver, pending: list[str]) -> dict[str, Any]:
    """Approvals on the pages: open, second step, statement, decision; CPU µs of each."""
    groups = web_groups(there)
    before = cpu_seconds(groups)
    for grant_id in pending:
        answer = person.decide(grant_id, person.sign(grant_id))
        if not answer.is_success:
            raise RuntimeError(answer.text)
    return cpu_of(groups, before, len(pending))


def ask(there: MeasuredSystem, question: Question, given: argparse.Namespace) -> dict[str, Any]:
    """Verifications or payments as fast as they are answered; CPU µs of each."""
    part = verify.Part("postgres", lean=True, question=question)
    files = verify.signed(there, part, given.calls)
    before = there.cpu()
    tally, _ = verify.drive(there, part, HOW, files, seconds=HOW.seconds, rate=None)
    # On a busy machine a few calls get 503, which leave no event.
    if (right := tally.right(1)) < given.calls * 0.99:
        raise RuntimeError(f"too few calls got a yes: {tally}")
    settle(there)
    spent = {name: after - before[name] for name, after in there.cpu().items()}
    return {"cpu_us": {name: round(each / right * 1e6, 1) for name, each in spent.items()}}


def web_groups(there: MeasuredSystem) -> dict[str, int]:
    """The processes that serve pages and tokens."""
    assert there.registry.process
    return {"web": there.registry.process.pid, "postgres": there.others["postgres"]}


def cpu_of(groups: dict[str, int], before: dict[str, float], number: int) -> dict[str, Any]:
    """CPU µs of each act by group."""
    spent = {name: after - before[name] for name, after in cpu_seconds(groups).items()}
    return {"cpu_us": {name: round(each / number * 1e6, 1) for name, each in spent.items()}}


def in_redis(there: MeasuredSystem) -> dict[str, float]:
    """Bytes of a spent proof, and of an event that waits to be taken over by the jobs."""
    part, calls = verify.Part("postgres", lean=True), 2_000
    files = verify.signed(there, part, calls)
    client: Any = Redis.from_url(there.registry.env["REDIS_URL"])
    before, keys = client.info("memory")["used_memory"], client.dbsize()
    # The jobs stop for a second or two, so that nothing is taken over meanwhile.
    stopped = pids_of(there.others["jobs"])
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        verify.drive(there, part, HOW, files, seconds=HOW.seconds, rate=None)
        full = client.info("memory")["used_memory"]
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    lasts = max(client.pttl(key) for key in itertools.islice(client.scan_iter(), 2_000)) / 1_000
    settle(there)
    rest = client.info("memory")["used_memory"]
    added = client.dbsize() - keys
    return {
        "calls": calls,
        "keys_per_call": round(added / calls, 3),
        "proof_seconds": round(lasts),
        "bytes_per_proof": round((rest - before) / calls, 1),
        "bytes_per_waiting_event": round((full - rest) / calls, 1),
    }


def memory(there: MeasuredSystem) -> dict[str, list[int]]:
    """Proportional set size of each process of a group, largest first."""
    assert there.server.process
    groups = {**web_groups(there), **there.others, "verifier": there.server.process.pid}
    return {
        name: sorted((pss(pid) for pid in pids_of(root)), reverse=True)
        for name, root in groups.items()
    }


def pss(pid: int) -> int:
    """Bytes of memory of a process, with its share of what it shares; 0 if it has ended."""
    try:
        told = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    found = re.search(r"^Pss:\s+(\d+) kB$", told, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def archive() -> None:
    """Sign and archive everything now, as the jobs do within the hour."""
    from django.utils import timezone

    from audit.archive.segment_writing import archive_audit
    from audit.checkpoints.log_breaks import log_store
    from audit.checkpoints.signing import checkpoint_log
    from audit.services import seal_audit

    seal_audit(now=timezone.now())
    checkpoint_log(now=timezone.now(), at_once=True)
    store = log_store()
    assert store is not None
    while archive_audit(now=timezone.now(), store=store):
        pass


if __name__ == "__main__":
    if sys.argv[1:] == ["archive"]:
        os.environ.setdefault("DJANGO_SETTINGS_MODULE", "agentauth.settings")
        django.setup()
        archive()
        print("null")
    else:
        main()
