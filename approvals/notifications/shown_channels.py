"""A person's channels as their settings page shows them, with how the last messages fared."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from django.db.models import Max, OuterRef, Subquery
from django.utils.translation import gettext as _

from approvals.models import IN_USE, Notification, NotificationChannel
from approvals.notifications.channels import MAX_WEBHOOKS
from approvals.services.recovery_alert_mail import mail_is_sent
from registry.models import Human

State, Kind = Notification.State, NotificationChannel.Kind


@dataclass(frozen=True, slots=True)
class ShownChannel:
    row: NotificationChannel
    # Of a webhook; empty for e-mail. The rest of its address may be a secret.
    host: str
    sent_at: datetime | None
    # How the latest message failed; empty if it did not. In general words: an exact reason would
    # say what answers at an address that a person typed.
    trouble: str

    @property
    def name(self) -> str:
        return self.host or "e-mail"


def notifications_of(human: Human) -> dict[str, Any]:
    """The context of the page's section. One query."""
    told = Notification.objects.filter(channel=OuterRef("pk"))
    latest = told.exclude(state=State.MOOT).order_by("-created_at", "-pk").values("error")[:1]
    sent = told.filter(state=State.SENT).values("channel").annotate(at=Max("ended_at")).values("at")
    rows = list(
        NotificationChannel.objects.filter(IN_USE, human=human)
        .annotate(sent_at=Subquery(sent), trouble=Subquery(latest))
        .order_by("kind", "created_at")
    )
    shown = [
        ShownChannel(
            row, urlsplit(row.target).hostname or "", row.sent_at, _trouble(row.trouble or "")
        )
        for row in rows
    ]
    webhooks = sum(row.kind == Kind.WEBHOOK for row in rows)
    return {
        "channels": shown,
        "has_email": webhooks < len(rows),
        "may_add_webhook": webhooks < MAX_WEBHOOKS,
        "mail_is_sent": mail_is_sent(),
    }


def _trouble(error: str) -> str:
    if not error:
        return ""
    if error == "secret_unreadable":
        return _("its signing key can no longer be read; remove the webhook and add it again")
    answered = error.startswith("http_") or error == "answer_too_long"
    return _("it answered with an error") if answered else _("it could not be reached")
