"""The job that sends notifications: at least once each, with retries, until they are dead."""

import logging
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Final

from django.db import transaction

from agentauth.protocol.errors import InvalidStateError
from approvals.models import Notification, NotificationChannel
from approvals.notifications import mail, webhooks
from approvals.notifications.outbox import add_waiting, still_waiting
from audit import kinds
from audit.services import Actor, record

logger = logging.getLogger(__name__)

# The wait after the first failure, doubled with each further one. With the longest wait, the last
# attempt is some 7 hours after the first.
FIRST_WAIT: Final = timedelta(seconds=5)
LONGEST_WAIT: Final = timedelta(hours=1)
MAX_ATTEMPTS: Final = 16
# Each wait is up to this part longer, at random, so that a server that returns is not hit at once
# by all that failed together.
JITTER: Final = 0.25
# A claimed row whose process died is sent by another one after this long. Longer than a delivery
# may take: EMAIL_TIMEOUT and the time of a webhook are 10 s.
CLAIM: Final = timedelta(minutes=1)
# Messages per run, at most one per channel, so that a channel that hangs delays no other for long.
BATCH: Final = 20
LOOKED_AT: Final = 200
THREADS: Final = 8


@dataclass(frozen=True, slots=True)
class _Claimed:
    row: Notification
    send: Callable[[], None]


def send_notifications(*, now: datetime) -> int:
    """Add what is not yet in the outbox, and send what is due. Returns how many were sent.

    At least once: if the process dies after a message and before the commit, it is sent again,
    with the same id. The network is used in threads that touch no database.
    """
    add_waiting(now=now)
    claimed = _claim_due(now)
    if not claimed:
        return 0
    with ThreadPoolExecutor(min(THREADS, len(claimed))) as pool:
        errors = list(pool.map(_attempt, claimed))
    for each, error in zip(claimed, errors, strict=True):
        _finish(each.row, error, now)
    return errors.count("")


def retry(*, notification: Notification, actor: Actor, now: datetime) -> None:
    """Send a dead message again, with all its attempts.

    Raises InvalidStateError if it is not dead, or no longer worth sending.
    """
    with transaction.atomic():
        dead = Notification.objects.filter(
            pk=notification.pk, state=Notification.State.DEAD, expires_at__gt=now
        )
        if not dead.update(
            state=Notification.State.PENDING, attempts=0, error="", due_at=now, ended_at=None
        ):
            raise InvalidStateError(
                "Not sent again: the notification is not dead, or what it is about has expired."
            )
        record(
            kind=kinds.NOTIFICATION_RETRIED,
            actor=actor,
            at=now,
            human_id=notification.channel.human_id,
            data={"notification_id": str(notification.pk)},
        )


def _claim_due(now: datetime) -> list[_Claimed]:
    due = list(
        Notification.objects.filter(state=Notification.State.PENDING, due_at__lte=now)
        .select_related("channel__human")
        .order_by("due_at")[:LOOKED_AT]
    )
    wanted = still_waiting(due, now=now)
    unwanted = [row for row in due if row.pk not in wanted]
    # A message that failed until it expired never arrived: an administrator must see that.
    dead = [row.pk for row in unwanted if row.error and row.expires_at <= now]
    moot = [row.pk for row in unwanted if row.pk not in dead]
    for state, ended in ((Notification.State.DEAD, dead), (Notification.State.MOOT, moot)):
        if ended:
            Notification.objects.filter(pk__in=ended, state=Notification.State.PENDING).update(
                state=state, ended_at=now
            )
    first = {row.channel_id: row for row in reversed(due) if row.pk in wanted}
    claimed = []
    for row in sorted(first.values(), key=lambda row: row.due_at)[:BATCH]:
        # Compare and swap: of several processes one sends it.
        mine = Notification.objects.filter(
            pk=row.pk, state=Notification.State.PENDING, due_at=row.due_at
        )
        if mine.update(due_at=now + CLAIM, attempts=row.attempts + 1):
            row.due_at, row.attempts = now + CLAIM, row.attempts + 1
            claimed.append(_Claimed(row, _way_out(row, now)))
    return claimed


def _way_out(row: Notification, now: datetime) -> Callable[[], None]:
    """What sends the row, with everything it needs from the database."""
    if row.channel.kind == NotificationChannel.Kind.EMAIL:
        return partial(mail.send, mail.compose(row))
    return partial(_post, row, now)


def _post(row: Notification, now: datetime) -> None:
    webhooks.send(webhooks.compose(row, now=now))


def _attempt(each: _Claimed) -> str:
    """Send; returns why it failed, or nothing."""
    try:
        each.send()
    except (mail.MailError, webhooks.WebhookError) as error:
        return str(error)[:40]
    return ""


def _finish(row: Notification, error: str, now: datetime) -> None:
    # Without effect if the claim ran out and another process has it.
    mine = Notification.objects.filter(
        pk=row.pk, state=Notification.State.PENDING, due_at=row.due_at
    )
    if not error:
        mine.update(state=Notification.State.SENT, ended_at=now, error="")
    elif row.attempts >= MAX_ATTEMPTS:
        if mine.update(state=Notification.State.DEAD, ended_at=now, error=error):
            logger.error(
                "Gave up on notification %s after %d attempts: %s.", row.pk, row.attempts, error
            )
    else:
        mine.update(due_at=now + _wait(row.attempts), error=error)


def _wait(attempts: int) -> timedelta:
    wait = min(FIRST_WAIT * (1 << (attempts - 1)), LONGEST_WAIT)
    return wait * (1 + JITTER * random.random())  # noqa: S311 — spreads retries, hides nothing
