"""Going on after a restore: what the lost history may have ended or spent counts for nothing more, and the log gets another name.

All of it is one transaction that an operator begins (`manage.py continue_after_restore`, docs/restore.md), while nothing is answered.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import chain

from django.conf import settings
from django.db import transaction
from django.db.models import F

from agentauth.protocol.errors import InvalidStateError
from approvals.models import Challenge, SetupCode
from approvals.services.ending_again import REASON, end_again
from audit import kinds
from audit.breaks import (
    break_record,
    current_break,
    folder_of,
    key_of_break,
    known_names,
    names_outside,
    new_name,
)
from audit.endings import Ending, read_endings
from audit.faults import fault_point
from audit.models import Checkpoint, Head, LogBreak, Segment
from audit.sequencer import tree_of
from audit.services import Actor, record
from audit.stores import Store, store_at
from kms.switching import switch_key
from registry.models import EnrolmentCode, Grant, Human
from registry.services.grants import suspend_grant, withdraw_grant
from verifier.models import Home
from verifier.services.home import database_clock, look
from verifier.stores.mark import read_mark
from verifier.stores.probe import RedisProbe


@dataclass(frozen=True, slots=True)
class Continued:
    """The log goes on as `log` after `size` leaves; how many grants were suspended, requests withdrawn and endings done again."""

    log: str
    size: int
    suspended: int
    withdrawn: int
    ended_again: int


@dataclass(frozen=True, slots=True)
class _Lost:
    """What is known outside of the history that was lost: names of logs, the latest epoch, and what ended."""

    names: frozenset[str]
    epoch: int
    endings: tuple[Ending, ...]


def continue_after_restore(
    *, operator: str, undetected: bool = False, actor: Actor, now: datetime
) -> Continued:
    """End the hold: from here on this database is the registry's history. `operator` is who decided, for the record.

    1. The database is held, or with `undetected` need not be. 2. What is known outside is read: without it nothing goes on. 3. Of
    several operators one swaps the hold for the new history; in the same transaction 4. the log gets a new key; 5. what is known to
    have ended ends again, people first; 6. sessions, codes and requests end, and approved grants wait for a new
    signature; 7. the break is written down, here and outside. The verifier's home is left, so a new epoch begins.

    Raises InvalidStateError where nothing is held, or another operator was first; TemporarilyUnavailableError where Redis, the
    store outside or the home of keys does not answer, and then the hold stays; ContradictedError where what stands outside is none
    of ours.
    """
    row = _held(undetected=undetected)  # 1
    store = store_at(settings.AUDIT_STORE) if settings.AUDIT_STORE else None
    lost = _lost(row, store)  # 2
    with transaction.atomic():
        name = new_name(now)
        _swap(row, name, max(row.epoch + 1, lost.epoch + 1, int(now.timestamp())))  # 3
        switch_key(purpose="audit", actor=actor, now=now)  # 4
        again = sum(end_again(each, actor=actor, now=now) for each in _people_first(lost.endings))  # 5
        suspended, withdrawn = _let_go(actor, now)  # 6
        begun = _break(name, lost.names, now)  # 7
        done = Continued(name, begun.size, suspended, withdrawn, again)
        data = {
            "log": name,
            "size": begun.size,
            "operator": operator,
            "because": row.held_because,
            "suspended": suspended,
            "withdrawn": withdrawn,
            "ended_again": again,
        }
        record(kind=kinds.HISTORY_CONTINUED, actor=actor, at=now, reason=REASON, data=data)
        # Last: whoever dies between this and the commit is held as before, and the next try knows this name as lost.
        if store is not None:
            store.put_once(key_of_break(name), break_record(begun))
        fault_point("continue.before_commit")
    return done


def _held(*, undetected: bool) -> Home:
    row, _now = look()
    if row.held_at is None and not undetected:
        begun = current_break()
        since = f" The log goes on as {begun.name} since {begun.at:%Y-%m-%d %H:%M:%S} UTC." if begun else ""
        raise InvalidStateError(
            f"Nothing is held: this database is as new as what is known outside.{since} Where a backup was restored all the"
            " same, say --undetected."
        )
    return row


def _lost(row: Home, store: Store | None) -> _Lost:
    known, names, epoch = known_names(), set[str](), 0
    if settings.REDIS_URL:
        mark, probe = read_mark(), RedisProbe()
        names |= {mark.name} - known if mark else set()
        epoch = probe.latest_mark()
        # Whoever still believes in an epoch of the lost history writes into none of it.
        probe.mark(max(row.epoch + 1, epoch + 1))
        epoch = max(row.epoch + 1, epoch + 1)
    endings: Iterator[Ending] = iter(())
    if store is not None:
        names |= names_outside(store) - known
        newest = Checkpoint.objects.order_by("-size").first()
        present = row.history
        endings = chain(
            read_endings(store, folder_of(present), after=newest.size if newest else 0),
            *(read_endings(store, folder_of(name), after=0) for name in sorted(names)),
        )
    return _Lost(frozenset(names), epoch, tuple(dict.fromkeys(endings)))


def _swap(row: Home, name: str, epoch: int) -> None:
    held = Home.objects.filter(pk=Home.ONLY, history=row.history, held_at=row.held_at)
    swapped = held.update(
        history=name,
        held_at=None,
        held_because="",
        vouched_for=row.instance,  # type: ignore[attr-defined]  # annotated
        epoch=epoch,
        leaving_at=database_clock(),
        leaving_for=Home.Kind.DATABASE,
        back_after=0,
    )
    if not swapped:
        raise InvalidStateError("Another operator has just continued. Nothing is left to do here.")


def _people_first(endings: tuple[Ending, ...]) -> list[Ending]:
    return sorted(endings, key=lambda each: each.kind != kinds.HUMAN_DELETED)


def _let_go(actor: Actor, now: datetime) -> tuple[int, int]:
    """Whatever may have been used, ended or spent since the backup: how many grants wait now, and how many requests ended."""
    Human.objects.update(session_epoch=F("session_epoch") + 1)
    EnrolmentCode.objects.filter(used_at=None, expires_at__gt=now).update(expires_at=now)
    SetupCode.objects.filter(used_at=None, expires_at__gt=now).update(expires_at=now)
    Challenge.objects.all().delete()
    suspended = withdrawn = 0
    states = [Grant.Status.PENDING, Grant.Status.APPROVED, Grant.Status.SUSPENDED]
    grants = Grant.objects.filter(status__in=states).select_related("agent").order_by("id")
    for grant in grants.iterator():
        # Past its end, or it waits for a signature already.
        with suppress(InvalidStateError):
            if grant.status == Grant.Status.PENDING:
                withdraw_grant(grant=grant, actor=actor, now=now, reason=REASON)
                withdrawn += 1
            else:
                cause = Grant.SuspensionCause.RESTORED
                suspend_grant(grant=grant, cause=cause, actor=actor, now=now)
                suspended += 1
    return suspended, withdrawn


def _break(name: str, lost: frozenset[str], now: datetime) -> LogBreak:
    head = Head.objects.filter(id=Head.ONLY).first() or Head(size=0)
    before, newest = current_break(), Checkpoint.objects.order_by("-size").first()
    segment = Segment.objects.order_by("-first").first()
    return LogBreak.objects.create(
        name=name,
        previous=before.name if before else "",
        size=head.size,
        root=tree_of(head).root(),
        signed=newest.size if newest else 0,
        archived=segment.end if segment else 0,
        lost=sorted(lost),
        at=now,
    )
