"""Continue after a restore: end what the lost history may have ended or spent, rename the log.

An operator starts this one transaction (`manage.py continue_after_restore`, docs/restore.md) while
the registry answers no requests.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from typing import Final

from django.conf import settings
from django.db import transaction
from django.db.models import F

from agentauth.protocol.errors import InvalidStateError, TemporarilyUnavailableError
from approvals.models import Challenge, Recovery, SetupCode
from approvals.services.reapply_endings import REASON, end_again
from approvals.services.recovery import cancel_recovery
from audit import kinds
from audit.checkpoints.endings_in_store import Ending, read_endings
from audit.checkpoints.log_breaks import (
    break_record,
    current_break,
    folder_of,
    key_of_break,
    known_names,
    names_outside,
    new_name,
)
from audit.fault_injection import fault_point
from audit.log.sequencer import tree_of
from audit.models import Checkpoint, Head, LogBreak, Segment
from audit.services import Actor, record
from audit.stores import Store
from audit.stores.store_factory import store_at
from kms.immediate_rotation import switch_key
from registry.models import Agent, EnrolmentCode, Grant, Human
from registry.services.grant_requests import withdraw_grant
from registry.services.grants import suspend_grant
from verifier.models import Home
from verifier.services import rollback_hold
from verifier.services.replay_epochs import configured_cache, database_clock, read_or_create_row
from verifier.stores.log_size_mark import read_mark
from verifier.stores.redis_probe import RedisProbe

# More claim links than an agent can get in the week before it is deleted unclaimed.
_CLAIMS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Continued:
    """The log continues as `log` after `size` leaves.

    Counts of grants suspended, requests withdrawn and endings repeated.
    """

    log: str
    size: int
    suspended: int
    withdrawn: int
    ended_again: int


@dataclass(frozen=True, slots=True)
class _LostHistory:
    """What Redis and the store know of the lost history: log names, latest epoch, endings."""

    names: frozenset[str]
    epoch: int
    endings: tuple[Ending, ...]


def continue_after_restore(
    *, operator: str, undetected: bool = False, actor: Actor, now: datetime
) -> Continued:
    """Lift the hold and make this database the registry's history.

    `operator` is recorded as the person who decided.

    1. Check that the database is held, unless `undetected`.
    2. Read what is known outside; stop if that fails.
    3. Swap the hold for the new history; one operator succeeds. Steps 4 to 7 share its transaction.
    4. Give the log a new key.
    5. End again what is known to have ended, humans first.
    6. End sessions, codes and requests, and suspend approved grants until a new signature.
    7. Record the break, here and outside.

    The replay cache begins a new epoch.

    Raises InvalidStateError if nothing is held or another operator was first;
    TemporarilyUnavailableError if Redis, the store or the key backend does not answer, and then the
    hold stays; ContradictedError if the store holds a malformed object.
    """
    row = _require_held_row(undetected=undetected)  # 1
    store = store_at(settings.AUDIT_STORE) if settings.AUDIT_STORE else None
    lost = _read_lost_history(row, store)  # 2
    with transaction.atomic():
        name = new_name(now, after=max(known_names() | lost.names))
        _swap(row, name, max(row.epoch + 1, lost.epoch + 1, int(now.timestamp())))  # 3
        switch_key(purpose="audit", actor=actor, now=now)  # 4
        again = sum(
            end_again(each, actor=actor, now=now) for each in _people_first(lost.endings)
        )  # 5
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
        # Last: if the process dies before the commit, the hold stays and the next try counts this
        # name as lost.
        if store is not None:
            store.put_once(key_of_break(name), break_record(begun))
        fault_point("continue.before_commit")
    return done


def _require_held_row(*, undetected: bool) -> Home:
    row, _now = read_or_create_row()
    if row.held_at is None and not undetected and (unknown := rollback_hold.halt(row)):
        raise TemporarilyUnavailableError(f"Nothing was done: {unknown.reason}.")
    if row.held_at is None and not undetected:
        begun = current_break()
        since = (
            f" The log has continued as {begun.name} since {begun.at:%Y-%m-%d %H:%M:%S} UTC."
            if begun
            else ""
        )
        raise InvalidStateError(
            f"The database is not held: it is as new as the records outside it.{since} If you did "
            "restore a backup, run this again with --undetected."
        )
    return row


def _read_lost_history(row: Home, store: Store | None) -> _LostHistory:
    known, names, epoch = known_names(), set[str](), 0
    if settings.REDIS_URL:
        mark, probe = read_mark(), RedisProbe()
        names |= {mark.name} - known if mark else set()
        probe.claim()
        epoch = probe.latest_mark()
        # Bars a process that still has an epoch of the lost history from writing to any of its
        # shards.
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
    return _LostHistory(frozenset(names), epoch, tuple(dict.fromkeys(endings)))


def _swap(row: Home, name: str, epoch: int) -> None:
    held = Home.objects.filter(pk=Home.ONLY, history=row.history, held_at=row.held_at)
    swapped = held.update(
        history=name,
        held_at=None,
        held_because="",
        vouched_for=row.instance,  # type: ignore[attr-defined]  # annotated
        epoch=epoch,
        leaving_at=database_clock(),
        leaving_for=configured_cache(),
        back_after=0,
    )
    if not swapped:
        raise InvalidStateError(
            "Another operator has just continued, so nothing was done here. Check /health/ready."
        )


def _people_first(endings: tuple[Ending, ...]) -> list[Ending]:
    return sorted(endings, key=lambda each: each.kind != kinds.HUMAN_DELETED)


def _let_go(actor: Actor, now: datetime) -> tuple[int, int]:
    """End or suspend what may have been used, ended or spent since the backup.

    Returns the numbers of suspended grants and withdrawn requests.
    """
    Human.objects.update(session_epoch=F("session_epoch") + 1)
    EnrolmentCode.objects.filter(used_at=None, expires_at__gt=now).update(expires_at=now)
    SetupCode.objects.filter(used_at=None, expires_at__gt=now).update(expires_at=now)
    # One of them may have been cancelled since the backup.
    for row in Recovery.objects.select_for_update().open(now).order_by("pk"):
        cancel_recovery(recovery=row, actor=actor, now=now)
    Challenge.objects.all().delete()
    # Claim links derive from these numbers: skip those that the lost history may have used.
    Agent.objects.filter(status=Agent.Status.UNCLAIMED).update(
        claim_number=F("claim_number") + _CLAIMS
    )
    suspended = withdrawn = 0
    states = [Grant.Status.PENDING, Grant.Status.APPROVED, Grant.Status.SUSPENDED]
    grants = Grant.objects.filter(status__in=states).select_related("agent").order_by("id")
    for grant in grants.iterator():
        # The grant has expired, or already waits for a signature.
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
