"""A person's channels: where they are told, of what, and when not. Each change is an event."""

import uuid
from dataclasses import dataclass
from datetime import datetime, time
from typing import Final

from django.db import IntegrityError, transaction

from agentauth.protocol.errors import InvalidRequestError, InvalidStateError, NotFoundError
from approvals.models import Notification, NotificationChannel
from approvals.notifications.outbox import tell_channels, tell_security
from approvals.notifications.webhook_addresses import parse_target
from approvals.notifications.webhook_secrets import encrypt, make_secret
from approvals.notifications.webhooks import shown
from approvals.services.human_locking import hold_human
from audit import kinds
from audit.services import Actor, record
from registry.models import Human

MAX_WEBHOOKS: Final = 5
Kind = NotificationChannel.Kind


@dataclass(frozen=True, slots=True)
class Choices:
    """What a channel is for, and its quiet hours in the human's time zone, if it has any."""

    requests: bool
    confirmations: bool
    security: bool
    quiet_from: time | None = None
    quiet_until: time | None = None


def add_email(*, human: Human, choices: Choices, actor: Actor, now: datetime) -> None:
    """Mail the human at the address of their account. Raises InvalidStateError if there is one."""
    _check(choices)
    channel = _new(human, Kind.EMAIL, choices, now)
    _insert(channel, actor, now)


def add_webhook(*, human: Human, url: str, choices: Choices, actor: Actor, now: datetime) -> str:
    """Post to this URL. Returns the key that signs the messages, which is not shown again.

    Raises InvalidRequestError for an address that is not allowed, InvalidStateError beyond
    MAX_WEBHOOKS.
    """
    _check(choices)
    target, secret = parse_target(url), make_secret()
    channel = _new(human, Kind.WEBHOOK, choices, now)
    channel.target = target.url
    channel.secret = encrypt(channel, secret)
    _insert(channel, actor, now)
    return shown(secret)


def change_channel(
    *, human: Human, channel_id: uuid.UUID, choices: Choices, actor: Actor, now: datetime
) -> None:
    """Change what one of the human's channels is for, and when. Raises NotFoundError."""
    _check(choices)
    with transaction.atomic():
        hold_human(human)
        channel = _own(human, channel_id)
        _set(channel, choices)
        channel.save()
        _record(kinds.CHANNEL_CHANGED, channel, actor, now)
        tell_security(human_id=human.pk, what=Notification.What.CHANNEL_CHANGED, now=now)


def remove_channel(*, human: Human, channel_id: uuid.UUID, actor: Actor, now: datetime) -> None:
    """Remove one of the human's channels, with all that waits for it. Raises NotFoundError."""
    with transaction.atomic():
        hold_human(human)
        channel = _own(human, channel_id)
        _record(kinds.CHANNEL_REMOVED, channel, actor, now)
        channel.delete()
        tell_security(human_id=human.pk, what=Notification.What.CHANNEL_CHANGED, now=now)


def erase_channels(*, human_id: uuid.UUID) -> int:
    """Delete a human's channels and their outbox, in the caller's transaction. Returns how many."""
    return NotificationChannel.objects.filter(human_id=human_id).delete()[0]


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


def _insert(channel: NotificationChannel, actor: Actor, now: datetime) -> None:
    with transaction.atomic():
        # Lock the human: two at once must not go beyond the limit.
        hold_human(channel.human)
        mine = NotificationChannel.objects.filter(human=channel.human, kind=channel.kind)
        most = MAX_WEBHOOKS if channel.kind == Kind.WEBHOOK else 1
        if mine.count() >= most:
            raise InvalidStateError(f"The limit for this kind of channel is {most}. Remove one.")
        try:
            with transaction.atomic():
                channel.save(force_insert=True)
        except IntegrityError:
            raise InvalidStateError("You get e-mail already.") from None
        _record(kinds.CHANNEL_ADDED, channel, actor, now)
        # The new channel too, whatever it is for: its first message shows that it works.
        what, subject = Notification.What.CHANNEL_CHANGED, channel.pk
        tell_channels([channel], what=what, now=now, subject=subject)
        tell_security(human_id=channel.human_id, what=what, now=now, subject=subject)


def _own(human: Human, channel_id: uuid.UUID) -> NotificationChannel:
    channel = NotificationChannel.objects.filter(human=human, pk=channel_id).first()
    if channel is None:
        raise NotFoundError("You have no such notification channel.")
    return channel


def _record(kind: str, channel: NotificationChannel, actor: Actor, now: datetime) -> None:
    """Without the URL: that of a chat room is itself a secret."""
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
