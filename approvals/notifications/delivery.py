"""The job that sends notifications: at least once each, with retries, until they are dead."""

import logging
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Final

from django.db import transaction
from django.db.models import Exists, F, OuterRef, Q, Window
from django.db.models.functions import RowNumber

from agentauth.protocol.errors import InvalidStateError
from approvals.models import Notification, NotificationChannel
from approvals.notifications import chat_webhooks, mail, posting, push, webhooks
from approvals.notifications.channel_management import GROUPS, remove_gone
from approvals.notifications.outbox import add_waiting, is_unwanted
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
# A claimed row whose process died is sent by another one after this long. Longer than a webhook
# may take, 10 s in all. EMAIL_TIMEOUT, also 10 s, limits each step of a mail and not their sum: a
# mail server that is slow at every step may get the same mail twice.
CLAIM: Final = timedelta(minutes=1)
# Messages per run for e-mail, as many for webhooks and for browsers: none competes with another
# kind. Each has a thread of its own, so that a run with webhooks that hang takes 10 s, not a
# multiple of it.
BATCH: Final = 20
# The reason if the cause is a fault of ours or of the process. The log says more.
UNEXPECTED: Final = "unexpected"
Kind = NotificationChannel.Kind
_COMPOSERS: Final = {
    Kind.WEBHOOK: webhooks.compose,
    Kind.SLACK: chat_webhooks.compose,
    Kind.TEAMS: chat_webhooks.compose,
    Kind.PUSH: push.compose,
}


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
    sent = 0
    with ThreadPoolExecutor(len(claimed)) as pool:
        attempts = {pool.submit(_attempt, each): each.row for each in claimed}
        # Each outcome is noted at once, not after the slowest receiver.
        for attempt in as_completed(attempts):
            error = attempt.result()
            _finish(attempts[attempt], error, now)
            sent += not error
    return sent


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
    _end_unwanted(now)
    claimed = []
    for row in [row for alike in GROUPS for row in _due(alike, now)]:
        # Compare and swap: of several processes one sends it.
        mine = Notification.objects.filter(
            pk=row.pk, state=Notification.State.PENDING, due_at=row.due_at
        )
        if mine.update(due_at=now + CLAIM, attempts=row.attempts + 1):
            row.due_at, row.attempts = now + CLAIM, row.attempts + 1
            claimed.append(_Claimed(row, _way_out(row, now)))
    return claimed


def _due(alike: tuple[str, ...], now: datetime) -> list[Notification]:
    """What to send: only the oldest row of each channel, and each person in turn.

    So a channel that hangs, and a person with many messages, take no more of a run than another.
    """
    due = Notification.objects.filter(state=Notification.State.PENDING, due_at__lte=now)
    earlier = due.filter(
        Q(due_at__lt=OuterRef("due_at")) | Q(due_at=OuterRef("due_at"), pk__lt=OuterRef("pk")),
        channel=OuterRef("channel"),
    )
    oldest = (F("due_at"), F("pk"))
    heads = due.filter(~Exists(earlier), channel__kind__in=alike).select_related("channel__human")
    turn = Window(RowNumber(), partition_by=F("channel__human"), order_by=oldest)
    return list(heads.annotate(turn=turn).order_by("turn", *oldest)[:BATCH])


def _end_unwanted(now: datetime) -> None:
    """End what is not sent any more, so that it takes no turn. Not what another process sends."""
    due = Notification.objects.filter(state=Notification.State.PENDING, due_at__lte=now)
    # The process died in the last attempt.
    for row in due.filter(attempts__gte=MAX_ATTEMPTS):
        _finish(row, UNEXPECTED, now)
    unwanted = due.filter(is_unwanted(now))
    # A message that failed until it expired never arrived: an administrator must see that.
    unwanted.filter(expires_at__lte=now).exclude(error="").update(
        state=Notification.State.DEAD, ended_at=now
    )
    unwanted.update(state=Notification.State.MOOT, ended_at=now)


def _way_out(row: Notification, now: datetime) -> Callable[[], None]:
    """What composes and sends the row, which has everything it needs from the database."""
    return partial(_mail if row.channel.kind == Kind.EMAIL else _post, row, now)


def _mail(row: Notification, _now: datetime) -> None:
    mail.send(mail.compose(row))


def _post(row: Notification, now: datetime) -> None:
    posting.send(_COMPOSERS[Kind(row.channel.kind)](row, now=now))


def _attempt(each: _Claimed) -> str:
    """Send; returns why it failed, or nothing. Raises nothing, so that others are sent too."""
    try:
        each.send()
    except (mail.MailError, posting.NotAcceptedError) as error:
        return str(error)[:40]
    except Exception:
        logger.exception("Notification %s was not sent; it is tried again.", each.row.pk)
        return UNEXPECTED
    return ""


def _finish(row: Notification, error: str, now: datetime) -> None:
    # Without effect if the claim ran out and another process has it.
    mine = Notification.objects.filter(
        pk=row.pk, state=Notification.State.PENDING, due_at=row.due_at
    )
    if not error:
        mine.update(state=Notification.State.SENT, ended_at=now, error="")
        NotificationChannel.objects.filter(pk=row.channel_id).update(last_sent_at=now)
    elif row.channel.kind == Kind.PUSH and error in push.GONE_ERRORS:
        remove_gone(channel=row.channel, now=now)
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
