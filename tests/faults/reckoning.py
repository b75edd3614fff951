"""After a fault: what the clients were told, held against each other and against the log and the counters."""

import json
import subprocess
import sys
import time
from bisect import insort
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import psycopg

from agentauth.protocol.encoding import b64u_encode, sha256
from tests.faults.cast import NOES, RATES
from tests.faults.clients import Answer, Log
from tests.faults.stage import Stage
from tests.live import ROOT

# Who names each call: on record before its answer. All else is in the log a moment after it.
KEYED = {"payer", "capped", "counted", "named", "spender", "confirmed"}
# After the answer to a revocation no verify that begins later accepts; where the verifier is cut off from the database,
# it knows that it is after so long.
BOUND_SECONDS, CUT_OFF_SECONDS = 1.0, 5.2
# Where something is down: come again. Every other one of this kind is a defect.
UNAVAILABLE, SERVER_ERROR = 503, 500
# A client's clock, the verifier's and the database's are one, looked at one after the other.
CLOCK_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Count:
    """Decisions told to a client that are not in the log, and how many the log itself says are missing."""

    missing: int
    stated: int


def reckon(
    stage: Stage, log: Log, before: Count, *, may_lose: bool, cut_off: bool
) -> tuple[Count, list[str]]:
    """The new count, and every broken promise in one sentence each. `before` is the count that is known already."""
    yes = [answer for answer in (*log.answers, *log.replays, *log.watched) if answer.yes]
    light = {str(each.body["decision_id"]) for each in yes if each.kind not in KEYED}
    counted = Count(before.missing + len(light - _on_record(stage, light)), _stated(stage))
    broken = [*told(log, bound=CUT_OFF_SECONDS if cut_off else BOUND_SECONDS), *oracle(stage, log)]
    broken += [*bursts(log, _moves(stage)), *unheard(log, _debited(stage, _names(log)))]
    if counted.missing > counted.stated:
        broken.append(f"{counted.missing} decisions are not on record, the log says {counted.stated}")
    if not may_lose and counted.missing > before.missing:
        broken.append(f"{counted.missing - before.missing} decisions are lost, and nothing that may be was")
    return counted, broken


def told(log: Log, *, bound: float) -> Iterator[str]:
    """What needs no database: no proof passes twice, no name is done twice, no answer is out of the ordinary."""
    everything = [*log.answers, *log.replays, *log.watched]
    proofs = Counter(answer.question["proof"] for answer in everything if answer.yes)
    yield from (f"a proof passed {times} times" for times in proofs.values() if times > 1)
    done: dict[str, set[str]] = {}
    for answer in everything:
        if answer.yes and (key := answer.question.get("idempotency_key")):
            done.setdefault(key, set()).add(answer.body["decision_id"])
    yield from (f"one operation, {len(ids)} decisions" for ids in done.values() if len(ids) > 1)
    yield from (f"answered {odd}" for odd in sorted({_odd(answer) for answer in everything} - {""}))
    yield from wrong_noes(log)
    yield from defects(log)
    for answer in (*log.watched, *log.replays):
        ended = log.revoked.get(answer.kind)
        if ended is not None and answer.yes and answer.began > ended + bound:
            yield f"accepted by {answer.where} {answer.began - ended:.2f} s after the revocation"


def wrong_noes(log: Log) -> Iterator[str]:
    """Whoever may is told no for a limit of the grant, for want of a nonce, or because the lost first try spent the proof."""
    for answer in log.answers:
        spent = answer.again and answer.body.get("reason") == "replayed"
        if _no(answer) and not spent and answer.body.get("reason") not in NOES[answer.kind]:
            yield f"{answer.kind} was told {answer.body} by {answer.where}"
    for answer in log.watched:
        if _no(answer) and answer.ended < log.revoking.get(answer.kind, answer.ended + 1):
            yield f"not revoked yet, and told {answer.body} by {answer.where}"


def unheard(log: Log, debited: set[str]) -> Iterator[str]:
    """Who debits an operation tells one caller to act, or leaves one without an answer. `debited`: names, of those on record.

    A yes that is no repeat tells to act, also where the very same question hears it twice. A debit that is told as a repeat
    alone is one that nobody acted on: it may be there only where some question came to no answer, which its caller then knows.
    """
    acting: dict[str, set[str]] = {name: set() for name in _names(log)}
    answered = acting.keys() - _unresolved(log)
    repeated: set[str] = set()
    for answer in (*log.answers, *log.replays):
        name = answer.question.get("idempotency_key")
        if name and answer.yes and answer.body.get("repeated", False) is False:
            acting[name].add(answer.question["proof"])
        elif name and answer.yes:
            repeated.add(name)
    yield from (f"one operation, {len(told)} told to act" for told in acting.values() if len(told) > 1)
    lost = [name for name in answered & (debited | repeated) if not acting[name]]
    if lost:
        yield f"{len(lost)} operations are debited, all who asked were answered, and nobody was told to act"


def _unresolved(log: Log) -> set[str]:
    """Names of operations about which somebody's question came to no answer.

    Under the provider's own key its last answer is that of the whole question, whatever became of the tries before. Without
    one a try that nobody answered stays so. Where nobody took the connection nothing was asked.
    """
    last: dict[tuple[str, str], Answer] = {}
    for answer in (*log.answers, *log.replays):
        question = str(answer.question["proof"]), answer.delivery
        stays = question in last and not last[question].decided and not answer.delivery
        if answer.status != -1 and not stays:
            last[question] = answer
    return {str(each.question.get("idempotency_key")) for each in last.values() if not each.decided}


def defects(log: Log) -> Iterator[str]:
    """At the registry too, whatever is down is 503 to whoever asks: humans at its pages, agents at its API."""
    wrong = Counter(each for each in log.registry if each[1] >= SERVER_ERROR and each[1] != UNAVAILABLE)
    for (asked, status), times in sorted(wrong.items()):
        yield f"{asked} was answered {status}, {times} times"


def _no(answer: Answer) -> bool:
    return answer.status == 200 and not answer.yes and answer.body.get("error") != "use_dpop_nonce"


def bursts(log: Log, moves: list[float]) -> Iterator[str]:
    """No rate is exceeded over any time, and none begins with a burst in a new home. `moves`: when each of them began."""
    for kind, (per_second, burst) in RATES.items():
        spans = _spans([each for each in (*log.answers, *log.replays) if each.kind == kind])
        ends: list[float] = []
        # Whatever began after one and ended before another was decided in between.
        for began, ended in reversed(spans):
            insort(ends, ended)
            if most := _excess(ends, began, burst, per_second):
                yield f"{kind}: {most}, at {per_second:g} a second and {burst} at once"
                break
        for move in moves:
            after = sorted(ended for began, ended in spans if began >= move)
            if most := _excess(after, move, 0, per_second):
                yield f"{kind}: {most} of a new home, at {per_second:g} a second and no burst"


def _spans(tries: list[Answer]) -> list[tuple[float, float]]:
    """In between each that was done was decided: what has a name, or one proof, was asked about more than once."""
    began: dict[str, float] = {}
    ended: dict[str, float] = {}
    for each in tries:
        if each.status == 200 and not each.yes:
            continue
        name = each.question.get("idempotency_key") or each.question["proof"]
        began[name] = min(each.began, began.get(name, each.began))
        if each.yes:
            ended[name] = min(each.ended, ended.get(name, each.ended))
    return sorted((began[name], end) for name, end in ended.items())


def _excess(ends: list[float], since: float, at_once: int, per_second: float) -> str:
    """The first time by which there were too many; empty where there never were."""
    for count, end in enumerate(ends, 1):
        if count > at_once + per_second * (end - since + CLOCK_SECONDS):
            return f"{count} times yes within {end - since:.2f} s"
    return ""


def _moves(stage: Stage) -> list[float]:
    """When each home but the first one began, by the clock of the clients."""
    ahead = time.time() - time.monotonic()
    rows = stage.sql(
        "SELECT extract(epoch FROM at) FROM audit_event"
        " WHERE kind = 'verifier.home.began' AND (data->>'epoch')::int > 1"
    )
    return [float(at) - ahead for (at,) in rows]


def _odd(answer: Answer) -> str:
    """What no client should ever be told; empty where it is in order."""
    if answer.status in {-1, 0, 200}:
        return ""
    if answer.status == 503 and answer.body.get("error") == "temporarily_unavailable":
        return ""
    if answer.status == 409 and answer.again and answer.body.get("error") == "idempotency_in_progress":
        # The first try, whose answer was lost, still runs.
        return ""
    return f"{answer.status} {answer.body}"


def _on_record(stage: Stage, ids: set[str]) -> set[str]:
    with psycopg.connect(stage.database.url) as connection:
        found = connection.execute("SELECT id::text FROM audit_event WHERE id = ANY(%s::uuid[])", [list(ids)])
        return {row[0] for row in found}


def _names(log: Log) -> set[str]:
    """Of all operations that anybody asked about."""
    return {
        answer.question["idempotency_key"]
        for answer in (*log.answers, *log.replays)
        if answer.question.get("idempotency_key")
    }


def _debited(stage: Stage, names: set[str]) -> set[str]:
    """Those of them that the log has a yes for, which is written with the debit."""
    known = {b64u_encode(sha256(name.encode())): name for name in names}
    with psycopg.connect(stage.database.url) as connection:
        found = connection.execute(
            "SELECT name FROM (SELECT coalesce(value, data)->>'idempotency_key_sha256' AS name FROM audit_event e"
            " LEFT JOIN audit_opening o ON o.event_id = e.id AND o.member = 'details'"
            " WHERE kind = 'verifier.decision.allowed') named WHERE name = ANY(%s)",
            [list(known)],
        )
        return {known[row[0]] for row in found}


def _stated(stage: Stage) -> int:
    [(count,)] = stage.sql(
        "SELECT coalesce(sum((data->>'count')::int), 0) FROM audit_event WHERE kind = 'verifier.decisions.lost'"
    )
    return int(count)


def oracle(stage: Stage, log: Log) -> list[str]:
    """tests/oracle.py, in a process that has the models."""
    yes = [answer for answer in log.answers if answer.yes and answer.kind in KEYED]
    acknowledged = {
        "decisions": sorted({str(answer.body["decision_id"]) for answer in yes}),
        "revoked": sorted(log.revoked),
        "approved": sorted(log.approved),
        "tokens": sorted(log.tokens),
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.oracle", "-"],
        cwd=ROOT, env=stage.registry.env, input=json.dumps(acknowledged), capture_output=True, text=True, check=False,
    )  # fmt: skip
    return [] if done.returncode == 0 else [*done.stdout.splitlines(), *done.stderr.splitlines()[-3:]]
