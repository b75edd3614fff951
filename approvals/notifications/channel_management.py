"""A person's notification channels: address, purpose, quiet hours. Each change is an event."""

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, time
from typing import Final

from django.db import IntegrityError, transaction
from django.db.models import Exists, OuterRef

from agentauth.protocol.errors import InvalidRequestError, InvalidStateError, NotFoundError
from approvals.models import IN_USE, Notification, NotificationChannel
from approvals.notifications.channel_addresses import parse_target
from approvals.notifications.channel_secrets import encrypt, make_secret
from approvals.notifications.outbox import tell_channels, tell_security
from approvals.notifications.push import Subscription
from approvals.notifications.webhooks import shown
from approvals.services.human_row_locks import hold_human
from audit import kinds
from audit.services import Actor, record
from registry.models import Human
from registry.services.expiry import FORGOTTEN_AT_ONCE

MAX_WEBHOOKS: Final = 5
MAX_BROWSERS: Final = 10
Kind = NotificationChannel.Kind
WEBHOOKS: Final = (Kind.WEBHOOK, Kind.SLACK, Kind.TEAMS)
# Kinds that share a limit and a batch of deliveries.
GROUPS: Final = {(Kind.EMAIL,): 1, WEBHOOKS: MAX_WEBHOOKS, (Kind.PUSH,): MAX_BROWSERS}
# Removes a browser that its push service no longer knows.
_ACTOR: Final = Actor("system", "notifications")


@dataclass(frozen=True, slots=True)
class Choices:
    """What a channel is for, and its quiet hours in the human's time zone, if it has any."""

    requests: bool
    confirmations: bool
    security: bool
    quiet_from: time | None = None
    quiet_until: time | None = None


def add_email(*, human: Human, choices: Choices, actor: Actor, now: datetime) -> None:
    """Mail the human at the address of their account. Raises InvalidStateError if they do."""
    _check(choices)
    with transaction.atomic():
        hold_human(human)
        channel = _new(human, Kind.EMAIL, choices, now)
        # A removed one whose last messages still wait is used again, with them.
        removed = NotificationChannel.objects.exclude(IN_USE).filter(human=human, kind=Kind.EMAIL)
        if old := removed.select_for_update().first():
            channel.pk = old.pk
        _insert(channel, actor, now, again=old is not None)


def add_webhook(
    *,
    human: Human,
    url: str,
    choices: Choices,
    actor: Actor,
    now: datetime,
    kind: NotificationChannel.Kind = Kind.WEBHOOK,
) -> str:
    """Post to this URL. Returns the key that signs the messages, which is not shown again.

    Empty for a chat room, whose messages are not signed. Raises InvalidRequestError for an address
    that is not allowed, InvalidStateError beyond MAX_WEBHOOKS.
    """
    _check(choices)
    target = parse_target(url)
    secret = make_secret() if kind == Kind.WEBHOOK else b""
    channel = _new(human, kind, choices, now)
    channel.target = target.url
    channel.secret = encrypt(channel, secret)
    _insert(channel, actor, now)
    return shown(secret) if secret else ""


def add_browser(
    *,
    human: Human,
    subscription: Subscription,
    name: str,
    choices: Choices,
    actor: Actor,
    now: datetime,
) -> None:
    """Send pushes to this browser. Raises InvalidStateError beyond MAX_BROWSERS."""
    _check(choices)
    channel = _new(human, Kind.PUSH, choices, now)
    channel.target, channel.name = subscription.endpoint, name
    with transaction.atomic():
        hold_human(human)
        # A browser that was added before has the same subscription still.
        same = NotificationChannel.objects.filter(
            human=human, kind=Kind.PUSH, target=channel.target
        )
        if old := same.select_for_update().first():
            channel.pk = old.pk
        channel.secret = encrypt(channel, subscription.secret())
        _insert(channel, actor, now, again=old is not None)


def change_channel(
    *, human: Human, channel_id: uuid.UUID, choices: Choices, actor: Actor, now: datetime
) -> None:
    """Change what one of the human's channels is for, and when. Raises NotFoundError."""
    with transaction.atomic():
        hold_human(human)
        channel = _own(human, channel_id)
        _check(choices)
        # Those that are for security before or after the change.
        told = [channel] if channel.for_security else []
        _set(channel, choices)
        channel.save()
        _record(kinds.CHANNEL_CHANGED, channel, actor, now)
        _tell_change(channel, told, now)


def remove_channel(*, human: Human, channel_id: uuid.UUID, actor: Actor, now: datetime) -> None:
    """Remove one of the human's channels. Raises NotFoundError.

    All but e-mail is removed at once, with all that waits for it. The account's address gets a last
    mail that says so, and the security messages that still wait: otherwise a thief could silence it
    first. Until then the row of an e-mail channel stays, for nothing; `forget_removed` deletes it.
    """
    with transaction.atomic():
        hold_human(human)
        channel = _own(human, channel_id)
        _record(kinds.CHANNEL_REMOVED, channel, actor, now)
        if channel.kind == Kind.EMAIL:
            _set(channel, Choices(requests=False, confirmations=False, security=False))
            channel.save()
            _tell_change(channel, [channel], now)
        else:
            channel.delete()
            tell_security(human_id=human.pk, what=Notification.What.CHANNEL_CHANGED, now=now)


def remove_all_but_email(*, human_id: uuid.UUID, actor: Actor, now: datetime) -> None:
    """Remove a human's webhooks and browsers, in the caller's transaction, which locked the human.

    A thief may have added them; mail goes to the address of the account.
    """
    rows = NotificationChannel.objects.filter(human_id=human_id).exclude(kind=Kind.EMAIL)
    for channel in rows.select_for_update().order_by("pk"):
        _record(kinds.CHANNEL_REMOVED, channel, actor, now)
        channel.delete()


def remove_gone(*, channel: NotificationChannel, now: datetime) -> None:
    """Remove a browser that its push service no longer knows, and tell the other channels."""
    with transaction.atomic():
        # The human first, as everywhere: the messages to the other channels lock those.
        list(Human.objects.filter(pk=channel.human_id).select_for_update(no_key=True))
        rows = NotificationChannel.objects.filter(pk=channel.pk, secret=channel.secret)
        if (gone := rows.select_for_update().first()) is None:
            return
        _record(kinds.CHANNEL_REMOVED, gone, _ACTOR, now)
        gone.delete()
        what = Notification.What.CHANNEL_CHANGED
        tell_security(human_id=channel.human_id, what=what, now=now)


def forget_removed() -> int:
    """Delete removed e-mail channels for which no message waits. Returns how many."""
    waiting = Notification.objects.filter(channel=OuterRef("pk"), state=Notification.State.PENDING)
    removed = NotificationChannel.objects.exclude(IN_USE).filter(~Exists(waiting))
    forgotten = 0
    for pk in list(removed.values_list("pk", flat=True)[:FORGOTTEN_AT_ONCE]):
        with transaction.atomic():
            # Locked and read again: its human may add e-mail again at this moment.
            if channel := removed.select_for_update().filter(pk=pk).first():
                channel.delete()
                forgotten += 1
    return forgotten


def erase_channels(*, human_id: uuid.UUID) -> int:
    """Delete a human's channels and their outbox, in the caller's transaction. Returns how many."""
    # Locked first: a message that the job adds meanwhile is refused there, not here.
    rows = NotificationChannel.objects.filter(human_id=human_id)
    keys = [row.pk for row in rows.select_for_update().order_by("pk")]
    return rows.filter(pk__in=keys).delete()[0]


def _check(choices: Choices) -> None:
    if not (choices.requests or choices.confirmations or choices.security):
        raise InvalidRequestError("Choose at least one kind of message to receive here.")
    if (choices.quiet_from is None) != (choices.quiet_until is None):
        raise InvalidRequestError("Quiet hours need a beginning and an end. Fill in both or none.")
    if choices.quiet_from is not None and choices.quiet_from == choices.quiet_until:
        raise InvalidRequestError("Quiet hours must not begin and end at the same time.")


def _new(human: Human, kind: str, choices: Choices, now: datetime) -> NotificationChannel:
    channel = NotificationChannel(human=human, kind=kind, created_at=now)
    _set(channel, choices)
    return channel


def _set(channel: NotificationChannel, choices: Choices) -> None:
    channel.for_requests = choices.requests
    channel.for_confirmations = choices.confirmations
    channel.for_security = choices.security
    channel.quiet_from, channel.quiet_until = choices.quiet_from, choices.quiet_until


def _insert(
    channel: NotificationChannel, actor: Actor, now: datetime, *, again: bool = False
) -> None:
    with transaction.atomic():
        # Lock the human: two at once must not go beyond the limit.
        hold_human(channel.human)
        [(alike, most)] = [each for each in GROUPS.items() if channel.kind in each[0]]
        mine = NotificationChannel.objects.filter(IN_USE, human=channel.human, kind__in=alike)
        if mine.exclude(pk=channel.pk).count() >= most:
            raise InvalidStateError(f"The limit for this kind of channel is {most}. Remove one.")
        try:
            with transaction.atomic():
                channel.save(force_insert=not again, force_update=again)
        except IntegrityError:
            raise InvalidStateError("You get e-mail already.") from None
        _record(kinds.CHANNEL_ADDED, channel, actor, now)
        # The new channel too, whatever it is for: its first message shows that it works.
        _tell_change(channel, [channel], now)


def _tell_change(
    channel: NotificationChannel, told: Iterable[NotificationChannel], now: datetime
) -> None:
    """Tell the human's channels for security that `channel` changed, and `told` whatever for."""
    what = Notification.What.CHANNEL_CHANGED
    tell_channels(told, what=what, now=now)
    # Not a second time: those already have one that waits.
    tell_security(human_id=channel.human_id, what=what, now=now)


def _own(human: Human, channel_id: uuid.UUID) -> NotificationChannel:
    """Locked until the commit, so that no message is added to what is being removed."""
    mine = NotificationChannel.objects.filter(IN_USE, human=human, pk=channel_id)
    channel = mine.select_for_update().first()
    if channel is None:
        raise NotFoundError("You have no such notification channel.")
    return channel


def _record(kind: str, channel: NotificationChannel, actor: Actor, now: datetime) -> None:
    """Without the URL: that of a chat room or of a browser is itself a secret."""
    quiet = channel.quiet_from is not None
    record(
        kind=kind,
        actor=actor,
        at=now,
        human_id=channel.human_id,
        data={
            "channel_id": str(channel.pk),
            "kind": channel.kind,
            "requests": channel.for_requests,
            "confirmations": channel.for_confirmations,
            "security": channel.for_security,
            "quiet": quiet,
        },
    )
