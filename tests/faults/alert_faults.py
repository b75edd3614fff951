"""What makes each alert fire, and how it ends: test_alerts.py has Prometheus look on."""

import subprocess
import uuid
from collections.abc import Callable
from dataclasses import dataclass

import psycopg

from tests.faults.breaking import cut_database, kill_redis, mend, start_jobs, start_redis
from tests.faults.stage import Stage
from tests.faults.test_table import database, keys, no_database, no_jobs, no_keys

# Over 70 % of the bound, in ids of their own (of 2025), whose events do not exist.
FILL = (
    "INSERT INTO audit_queueentry (event_id) SELECT ('01980000-0000-7000-8000-' || "
    "lpad(to_hex(n), 12, '0'))::uuid FROM generate_series(1, 70001) n"
)
EMPTY = "DELETE FROM audit_queueentry WHERE event_id::text LIKE '01980000-0000-7000-8000-%'"
# Of any shard, 70 % of MAX_STREAM (verifier/stores/lua_scripts.py).
STREAM, ENTRIES = "aa:{07}:events", 70_100
MARK = {b"alert": b"1"}
# The folder of AUDIT_STORE, a file system of its own.
STORE = "store"
# A channel of anybody's, and messages to it that no process sends today.
CHANNEL = uuid.UUID("01980000-0000-7000-8000-00000000c4a1")
ADD_CHANNEL = f"""
    INSERT INTO approvals_notificationchannel (id, human_id, kind, target, secret, name,
        for_requests, for_confirmations, for_security, created_at)
    SELECT '{CHANNEL}', id, 'webhook', 'https://away.example', 'none', '', true, true, true, now()
    FROM registry_human LIMIT 1
"""  # noqa: S608 — an id of ours
ADD_MESSAGES = f"""
    INSERT INTO approvals_notification
        (id, channel_id, what, subject, state, created_at, due_at, expires_at, attempts, error,
        ended_at)
    SELECT gen_random_uuid(), '{CHANNEL}', 'request', gen_random_uuid(), %s, now(),
        now() + interval '1 day', now() + interval '2 days', 3, 'ConnectError',
        CASE %s WHEN 'dead' THEN now() END
    FROM generate_series(1, %s)
"""  # noqa: S608 — an id of ours
# Of the newest signed event but one, which the tree of the newest checkpoint covers.
SPOIL = """
    UPDATE audit_leaf SET leaf_hash = decode(md5('another') || md5('event'), 'hex')
    WHERE leaf_index = (SELECT max(size) - 2 FROM audit_checkpoint)
    RETURNING leaf_index
"""


@dataclass(frozen=True)
class Fault:
    """How it begins and ends, the alerts that must fire meanwhile, and within how long (s)."""

    begin: Callable[[Stage], None]
    end: Callable[[Stage], None]
    alerts: frozenset[str]
    within: int = 120


def execute(held: Stage, statement: str, *values: object) -> None:
    """As the superuser, past the triggers that keep what is in the log."""
    with psycopg.connect(held.database.url, autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute(statement.encode(), values or None)


def fill_the_queue(held: Stage) -> None:
    """As if `jobs` had been away for hours."""
    no_jobs(held)
    execute(held, FILL)


def empty_the_queue(held: Stage) -> None:
    execute(held, EMPTY)
    start_jobs(held)


def no_writes(held: Stage) -> None:
    execute(held, "ALTER SYSTEM SET default_transaction_read_only = on")
    execute(held, "SELECT pg_reload_conf()")


def writes(held: Stage) -> None:
    with psycopg.connect(held.database.url, autocommit=True) as connection:
        connection.execute("SET default_transaction_read_only = off")
        connection.execute("ALTER SYSTEM RESET default_transaction_read_only")
        connection.execute("SELECT pg_reload_conf()")


def no_jobs_and_many_decisions(held: Stage) -> None:
    """As if `jobs` had been away during 70,100 payments of one shard."""
    no_jobs(held)
    client = held.redis.nodes[0].client()
    for start in range(0, ENTRIES, 10_000):
        pipe = client.pipeline(transaction=False)
        for _ in range(start, min(start + 10_000, ENTRIES)):
            pipe.xadd(STREAM, MARK)
        pipe.execute()


def no_such_decisions(held: Stage) -> None:
    client = held.redis.nodes[0].client()
    while ours := [
        entry for entry, fields in client.xrange(STREAM, count=10_000) if fields == MARK
    ]:
        client.xdel(STREAM, *ours)
    start_jobs(held)


def no_keys_anywhere(held: Stage) -> None:
    """No process has the keys: nor does `jobs`, which signs the log with one it holds."""
    no_keys(held)
    held.kill(held.jobs[0])
    start_jobs(held)


def store_takes_nothing(held: Stage) -> None:
    """Checkpoints are read and not written. One that is away altogether leaves the log unsigned."""
    _remount(held, "ro")


def store_takes_all(held: Stage) -> None:
    _remount(held, "rw")


def _remount(held: Stage, how: str) -> None:
    command = ["mount", "-o", f"remount,{how}", str(held.directory / STORE)]
    subprocess.run(command, check=True)


def another_event(held: Stage) -> None:
    """An attacker with all rights in the database replaces a signed event."""
    execute(held, "CREATE TABLE leaf_before AS SELECT leaf_index, leaf_hash FROM audit_leaf")
    execute(held, SPOIL)


def the_signed_event(held: Stage) -> None:
    execute(
        held,
        "UPDATE audit_leaf SET leaf_hash = leaf_before.leaf_hash FROM leaf_before"
        " WHERE leaf_before.leaf_index = audit_leaf.leaf_index"
        " AND leaf_before.leaf_hash <> audit_leaf.leaf_hash",
    )
    execute(held, "DROP TABLE leaf_before")


def messages(state: str, number: int) -> Callable[[Stage], None]:
    """As if so many messages had failed, and wait for a later attempt or are given up."""

    def begin(held: Stage) -> None:
        execute(held, ADD_CHANNEL)
        execute(held, ADD_MESSAGES, state, state, number)

    return begin


def no_messages(held: Stage) -> None:
    execute(held, f"DELETE FROM approvals_notification WHERE channel_id = '{CHANNEL}'")  # noqa: S608
    execute(held, f"DELETE FROM approvals_notificationchannel WHERE id = '{CHANNEL}'")  # noqa: S608


def slow_database(held: Stage) -> None:
    """Each message between the second verifier and PostgreSQL takes 0.05 s either way."""
    cut_database("delay 0.05")(held, 0)


FAULTS = {
    "jobs stop": Fault(
        no_jobs,
        start_jobs,
        frozenset({"AgentAuthProcessDown", "AgentAuthQueueOld", "AgentAuthJobNotRunning"}),
    ),
    "PostgreSQL stops": Fault(
        no_database,
        database,
        frozenset(
            {
                "AgentAuthNotReady",
                "AgentAuthServerErrors",
                "AgentAuthVerifyErrorBudgetBurnsFast",
                "AgentAuthVerifyErrorBudgetBurnsSlowly",
            }
        ),
    ),
    "PostgreSQL is read-only": Fault(no_writes, writes, frozenset({"AgentAuthNotWritable"})),
    "Redis stops": Fault(
        lambda held: kill_redis(held, 0),
        start_redis,
        frozenset({"AgentAuthRedisUnavailable", "AgentAuthVerifyErrorBudgetBurnsFast"}),
    ),
    "PostgreSQL is slow": Fault(
        slow_database,
        mend,
        frozenset(
            {"AgentAuthVerifyLatencyBudgetBurnsFast", "AgentAuthVerifyLatencyBudgetBurnsSlowly"}
        ),
    ),
    # Nothing is signed for three minutes: this threshold is no duration of a rule.
    "the key backend stops": Fault(
        no_keys_anywhere,
        keys,
        frozenset(
            {
                "AgentAuthSigningUnavailable",
                "AgentAuthLogUnsigned",
                "AgentAuthLogSigningBudgetBurnsFast",
                "AgentAuthLogSigningBudgetBurnsSlowly",
            }
        ),
        within=360,
    ),
    "the store takes nothing": Fault(
        store_takes_nothing, store_takes_all, frozenset({"AgentAuthLogNotCopied"})
    ),
    "the queue fills": Fault(
        fill_the_queue,
        empty_the_queue,
        frozenset({"AgentAuthQueueNearlyFull", "AgentAuthQueueOld"}),
    ),
    "a stream fills": Fault(
        no_jobs_and_many_decisions, no_such_decisions, frozenset({"AgentAuthStreamNearlyFull"})
    ),
    "messages are not taken": Fault(
        messages("pending", 25), no_messages, frozenset({"AgentAuthNotificationsPending"})
    ),
    "messages are given up": Fault(
        messages("dead", 10), no_messages, frozenset({"AgentAuthNotificationsDead"})
    ),
    "a signed event is replaced": Fault(
        another_event, the_signed_event, frozenset({"AgentAuthLogInconsistent"})
    ),
}
# Fired by tests of their own: they need another system, or other durations.
ALONE = {"AgentAuthKeyBackendThrottled", "AgentAuthLogNotCosigned", "AgentAuthArchiveLags"}
