"""Channels for the tests of notifications."""

from datetime import datetime, time
from typing import Any

from approvals.models import Notification, NotificationChannel
from approvals.notifications.channel_management import Choices, add_email, add_webhook
from registry.models import Human
from registry.tests.cast import TESTER

ALL = Choices(requests=True, confirmations=True, security=True)
NIGHT = Choices(
    requests=True, confirmations=True, security=True, quiet_from=time(22), quiet_until=time(7)
)


def by_mail(human: Human, now: datetime, choices: Choices = ALL) -> NotificationChannel:
    """A channel for mail whose first message was sent."""
    add_email(human=human, choices=choices, actor=TESTER, now=now)
    return _told(NotificationChannel.objects.get(human=human, kind="email"), now)


def by_webhook(
    human: Human, now: datetime, url: str, choices: Choices = ALL
) -> tuple[NotificationChannel, str]:
    """A webhook whose first message was sent, and its signing key."""
    key = add_webhook(human=human, url=url, choices=choices, actor=TESTER, now=now)
    return _told(NotificationChannel.objects.get(human=human, target=url), now), key


def by_chat_room(human: Human, now: datetime, url: str, kind: str) -> NotificationChannel:
    """A chat room whose first message was sent."""
    of = NotificationChannel.Kind(kind)
    assert add_webhook(human=human, url=url, choices=ALL, actor=TESTER, now=now, kind=of) == ""
    return _told(NotificationChannel.objects.get(human=human, kind=kind), now)


def outbox(**which: Any) -> list[tuple[str, str]]:
    """What is in the outbox, and its state."""
    rows = Notification.objects.filter(**which).order_by("created_at", "pk")
    return list(rows.values_list("what", "state"))


def _told(channel: NotificationChannel, now: datetime) -> NotificationChannel:
    Notification.objects.filter(what=Notification.What.CHANNEL_CHANGED).delete()
    return channel
