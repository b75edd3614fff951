"""The notifications section of the settings: channels, what they are for, and quiet hours."""

import re
import uuid
from datetime import time
from typing import Final

from django.contrib import messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST

from agentauth.protocol.errors import InvalidRequestError
from approvals.browser_names import name_browser
from approvals.models import NotificationChannel
from approvals.notifications import channel_management
from approvals.notifications.channel_management import Choices
from approvals.notifications.push import parse_subscription
from approvals.views import settings
from approvals.views.reauthentication import require_verification
from approvals.views.request_helpers import human_of, require_sign_in
from registry.authentication import actor_of

Kind = NotificationChannel.Kind
_HOUR_AND_MINUTE: Final = re.compile(r"(?:[01][0-9]|2[0-3]):[0-5][0-9]")


@require_POST
@require_sign_in
@require_verification
def add_email(request: HttpRequest) -> HttpResponse:
    human, actor = human_of(request), actor_of(request)
    channel_management.add_email(
        human=human, choices=_choices(request), actor=actor, now=timezone.now()
    )
    return _back(request, _("E-mail switched on. A first message is on its way."))


@require_POST
@require_sign_in
@require_verification
def add_webhook(request: HttpRequest) -> HttpResponse:
    """Show the signing secret in this response only: no session and no redirect may hold it."""
    kind = request.POST.get("kind", Kind.WEBHOOK)
    if kind not in channel_management.WEBHOOKS:
        raise InvalidRequestError("The format of a webhook must be webhook, slack or teams.")
    secret = channel_management.add_webhook(
        human=human_of(request),
        url=request.POST.get("url", "").strip(),
        choices=_choices(request),
        actor=actor_of(request),
        now=timezone.now(),
        kind=Kind(kind),
    )
    if not secret:
        return _back(request, _("Webhook added. A first message is on its way."))
    return settings.render_page(request, webhook_secret=secret)


@require_POST
@require_sign_in
@require_verification
def add_browser(request: HttpRequest) -> HttpResponse:
    sent = request.POST
    subscription = parse_subscription(
        endpoint=sent.get("endpoint", ""),
        p256dh=sent.get("p256dh", ""),
        auth=sent.get("auth", ""),
        application_server_key=sent.get("sender", ""),
    )
    channel_management.add_browser(
        human=human_of(request),
        subscription=subscription,
        name=name_browser(request.headers.get("User-Agent", "")) or _("Browser"),
        choices=_choices(request),
        actor=actor_of(request),
        now=timezone.now(),
    )
    return _back(request, _("This browser is added. A first notification is on its way."))


@require_POST
@require_sign_in
@require_verification
def change(request: HttpRequest, channel_id: uuid.UUID) -> HttpResponse:
    channel_management.change_channel(
        human=human_of(request),
        channel_id=channel_id,
        choices=_choices(request),
        actor=actor_of(request),
        now=timezone.now(),
    )
    return _back(request, _("Notifications saved."))


@require_POST
@require_sign_in
@require_verification
def remove(request: HttpRequest, channel_id: uuid.UUID) -> HttpResponse:
    channel_management.remove_channel(
        human=human_of(request),
        channel_id=channel_id,
        actor=actor_of(request),
        now=timezone.now(),
    )
    return _back(request, _("Channel removed."))


def _choices(request: HttpRequest) -> Choices:
    sent = request.POST
    return Choices(
        requests="requests" in sent,
        confirmations="confirmations" in sent,
        security="security" in sent,
        quiet_from=_time(sent.get("quiet_from", "")),
        quiet_until=_time(sent.get("quiet_until", "")),
    )


def _time(text: str) -> time | None:
    if not text:
        return None
    # `<input type="time">` sends HH:MM. `fromisoformat` alone would also take 22 and T22:00Z.
    if not _HOUR_AND_MINUTE.fullmatch(text):
        raise InvalidRequestError("Write quiet hours as hours and minutes, such as 22:00.")
    return time.fromisoformat(text)


def _back(request: HttpRequest, word: str) -> HttpResponse:
    messages.success(request, word)
    return HttpResponseRedirect("/settings/#notifications")
