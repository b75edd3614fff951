"""After a fault: compares what the clients were told with each other, the log and the counters."""

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
from tests.conftest import CAMPAIGN
from tests.faults.cast import NOES, RATES
from tests.faults.clients import Answer, Log
from tests.faults.stage import Stage
from tests.live import ROOT

# Roles whose calls are named: recorded before they are answered. All others reach the log a moment
# later.
KEYED = {"payer", "capped", "counted", "named", "spender", "confirmed"}
# Seconds after an acknowledged revocation by which every verify must refuse; the second figure is
# for a verifier cut off from the database, which refuses once its knowledge is that old. Beside
# other work a verifier's reading may stand still too, so that CI asserts the second alone.
BOUND_SECONDS, CUT_OFF_SECONDS = 1.0, 5.2
# 503 means that something is down, so retry. Any other 5xx is a defect.
UNAVAILABLE, SERVER_ERROR = 503, 500
# Client, verifier and database share one clock, but read it one after the other.
CLOCK_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Count:
    """Decisions told to clients but missing from the log, and how many the log reports missing."""

    missing: int
    stated: int


def reckon(
    stage: Stage, log: Log, before: Count, *, may_lose: bool, cut_off: bool
) -> tuple[Count, list[str]]:
    """The new count, and every broken promise in one sentence. `before` is the previous count."""
    yes = [answer for answer in (*log.answers, *log.replays, *log.watched) if answer.yes]
    light = {str(each.body["decision_id"]) for each in yes if each.kind not in KEYED}
    counted = Count(before.missing + len(light - _on_record(stage, light)), _stated(stage))
    broken = [
        *check_answers(log, bound=BOUND_SECONDS if CAMPAIGN and not cut_off else CUT_OFF_SECONDS),
        *oracle(stage, log),
    ]
    broken += [*bursts(log, _moves(stage)), *unheard(log, _debited(stage, _names(log)))]
    if counted.missing > counted.stated:
        broken.append(
            f"{counted.missing} decisions are not on record, the log says {counted.stated}"
        )
    if not may_lose and counted.missing > before.missing:
        broken.append(
            f"{counted.missing - before.missing} decisions are lost, and nothing that may be was"
        )
    return counted, broken


def check_answers(log: Log, *, bound: float) -> Iterator[str]:
    """Checks without the database: no proof or operation passes twice, no answer is unexpected."""
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
    """Refusals are right only for a limit, a missing nonce, or a proof spent by a lost try."""
    for answer in log.answers:
        spent = answer.again and answer.body.get("reason") == "replayed"
        if _no(answer) and not spent and answer.body.get("reason") not in NOES[answer.kind]:
            yield f"{answer.kind} was told {answer.body} by {answer.where}"
    for answer in log.watched:
        if _no(answer) and answer.ended < log.revoking.get(answer.kind, answer.ended + 1):
            yield f"not revoked yet, and told {answer.body} by {answer.where}"


def unheard(log: Log, debited: set[str]) -> Iterator[str]:
    """A debited operation tells exactly one caller to act, or leaves a caller without an answer.

    `debited`: the names on record. A yes that is not `repeated` tells its caller to act, even if
    the same question hears it twice. If every yes for a debit is `repeated`, no caller acted:
    allowed only if some question got no answer, since that caller knows it must find out.
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
    yield from (
        f"one operation, {len(told)} told to act" for told in acting.values() if len(told) > 1
    )
    lost = [name for name in answered & (debited | repeated) if not acting[name]]
    if lost:
        yield (
            f"{len(lost)} operations are debited, all who asked were answered, and nobody was "
            "told to act"
        )


def _unresolved(log: Log) -> set[str]:
    """Names of operations with a question that was never answered.

    Under the provider's own key the last answer stands for the question, whatever came of earlier
    tries. Without a key an unanswered try remains unanswered. A refused connection asked nothing.
    """
    last: dict[tuple[str, str], Answer] = {}
    for answer in (*log.answers, *log.replays):
        question = str(answer.question["proof"]), answer.delivery
        stays = question in last and not last[question].decided and not answer.delivery
        if answer.status != -1 and not stays:
            last[question] = answer
    return {str(each.question.get("idempotency_key")) for each in last.values() if not each.decided}


def defects(log: Log) -> Iterator[str]:
    """The registry too must answer 503 for anything that is down, to users and to agents."""
    wrong = Counter(
        each for each in log.registry if each[1] >= SERVER_ERROR and each[1] != UNAVAILABLE
    )
    for (asked, status), times in sorted(wrong.items()):
        yield f"{asked} was answered {status}, {times} times"


def _no(answer: Answer) -> bool:
    return answer.status == 200 and not answer.yes and answer.body.get("error") != "use_dpop_nonce"


def bursts(log: Log, moves: list[float]) -> Iterator[str]:
    """No rate is exceeded over any interval, and a move (times in `moves`) allows no new burst."""
    for kind, (per_second, burst) in RATES.items():
        spans = _spans([each for each in (*log.answers, *log.replays) if each.kind == kind])
        ends: list[float] = []
        # A call that began after one moment and ended before another was decided in between.
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
    """The span in which each accepted call was decided; it may have been asked several times."""
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
    """The first excess over the rate; empty if there is none."""
    for count, end in enumerate(ends, 1):
        if count > at_once + per_second * (end - since + CLOCK_SECONDS):
            return f"{count} times yes within {end - since:.2f} s"
    return ""


def _moves(stage: Stage) -> list[float]:
    """When each epoch after the first began, by the clients' clock."""
    ahead = time.time() - time.monotonic()
    rows = stage.sql(
        "SELECT extract(epoch FROM at) FROM audit_event"
        " WHERE kind = 'verifier.home.began' AND (data->>'epoch')::int > 1"
    )
    return [float(at) - ahead for (at,) in rows]


def _odd(answer: Answer) -> str:
    """An answer no client should ever get; empty if it is in order."""
    if answer.status in {-1, 0, 200}:
        return ""
    if answer.status == 503 and answer.body.get("error") == "temporarily_unavailable":
        return ""
    if (
        answer.status == 409
        and answer.again
        and answer.body.get("error") == "idempotency_in_progress"
    ):
        # The first try, whose answer was lost, is still running.
        return ""
    return f"{answer.status} {answer.body}"


def _on_record(stage: Stage, ids: set[str]) -> set[str]:
    with psycopg.connect(stage.database.url) as connection:
        found = connection.execute(
            "SELECT id::text FROM audit_event WHERE id = ANY(%s::uuid[])", [list(ids)]
        )
        return {row[0] for row in found}


def _names(log: Log) -> set[str]:
    """The names of all operations that were asked about."""
    return {
        answer.question["idempotency_key"]
        for answer in (*log.answers, *log.replays)
        if answer.question.get("idempotency_key")
    }


def _debited(stage: Stage, names: set[str]) -> set[str]:
    """The names with a yes in the log, which is written in the debit's transaction."""
    known = {b64u_encode(sha256(name.encode())): name for name in names}
    with psycopg.connect(stage.database.url) as connection:
        found = connection.execute(
            "SELECT name FROM (SELECT coalesce(value, data)->>'idempotency_key_sha256' AS "
            "name FROM audit_event e"
            " LEFT JOIN audit_opening o ON o.event_id = e.id AND o.member = 'details'"
            " WHERE kind = 'verifier.decision.allowed') named WHERE name = ANY(%s)",
            [list(known)],
        )
        return {known[row[0]] for row in found}


def _stated(stage: Stage) -> int:
    [(count,)] = stage.sql(
        "SELECT coalesce(sum((data->>'count')::int), 0) FROM audit_event WHERE kind = "
        "'verifier.decisions.lost'"
    )
    return int(count)


def oracle(stage: Stage, log: Log) -> list[str]:
    """Run tests/oracle.py in a process that has the models."""
    yes = [answer for answer in log.answers if answer.yes and answer.kind in KEYED]
    acknowledged = {
        "decisions": sorted({str(answer.body["decision_id"]) for answer in yes}),
        "revoked": sorted(log.revoked),
        "approved": sorted(log.approved),
        "tokens": sorted(log.tokens),
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.oracle", "-"],
        cwd=ROOT, env=stage.registry.env, input=json.dumps(acknowledged), capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    return (
        [] if done.returncode == 0 else [*done.stdout.splitlines(), *done.stderr.splitlines()[-3:]]
    )
