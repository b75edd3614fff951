"""A person's channels as their settings page shows them, with how the last messages fared."""

from collections import Counter
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from django.db.models import OuterRef, Subquery
from django.utils.translation import gettext as _

from agentauth.protocol.encoding import b64u_encode, sha256
from approvals.models import IN_USE, Notification, NotificationChannel
from approvals.notifications import push
from approvals.notifications.channel_management import MAX_BROWSERS, MAX_WEBHOOKS, WEBHOOKS
from approvals.services.recovery_alert_mail import mail_is_sent
from registry.models import Human

State, Kind = Notification.State, NotificationChannel.Kind


@dataclass(frozen=True, slots=True)
class ShownChannel:
    row: NotificationChannel
    # Of a webhook; empty for the others. The rest of its address may be a secret.
    host: str
    # How the latest message failed; empty if it did not. In general words: an exact reason would
    # say what answers at an address that a person typed.
    trouble: str

    @property
    def name(self) -> str:
        return self.host or self.row.name or _("E-mail")

    @property
    def digest(self) -> str:
        """By which a browser knows itself in the list. The address itself would be a secret."""
        return b64u_encode(sha256(self.row.target.encode())) if self.row.kind == Kind.PUSH else ""


def notifications_of(human: Human) -> dict[str, Any]:
    """The context of the page's section. One query."""
    told = Notification.objects.filter(channel=OuterRef("pk"))
    latest = told.exclude(state=State.MOOT).order_by("-created_at", "-pk").values("error")[:1]
    rows = list(
        NotificationChannel.objects.filter(IN_USE, human=human)
        .annotate(trouble=Subquery(latest))
        .order_by("kind", "created_at")
    )
    shown = [ShownChannel(row, _host(row), _trouble(row.trouble or "")) for row in rows]
    kinds = Counter(row.kind for row in rows)
    return {
        "channels": shown,
        "has_email": bool(kinds[Kind.EMAIL]),
        "may_add_webhook": sum(kinds[each] for each in WEBHOOKS) < MAX_WEBHOOKS,
        "may_add_browser": kinds[Kind.PUSH] < MAX_BROWSERS,
        "push_key": push.application_server_key(),
        "mail_is_sent": mail_is_sent(),
    }


def _host(row: NotificationChannel) -> str:
    return urlsplit(row.target).hostname or "" if row.kind in WEBHOOKS else ""


def _trouble(error: str) -> str:
    if not error:
        return ""
    if error == "secret_unreadable":
        return _("its keys can no longer be read; remove it and add it again")
    answered = error.startswith("http_") or error == "answer_too_long"
    return _("it answered with an error") if answered else _("it could not be reached")
