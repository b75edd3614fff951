"""Template context of every page: waiting items, presence, an open recovery, the command prefix."""

from typing import Any

from django.conf import settings
from django.http import HttpRequest
from django.utils import timezone
from django.utils.functional import SimpleLazyObject

from approvals.models import Recovery
from approvals.services.pending_items import waiting_for
from approvals.services.setup_and_sign_in import session_key_of
from approvals.views.request_helpers import routed_of
from registry.models import Human
from registry.services.service_logos import shown_logos
from verifier.services import presence_leases


def navigation(request: HttpRequest) -> dict[str, Any]:
    """Context of every template.

    The signed-in human, how many items wait for them, their presence, the open recovery of their
    account, `logos` for the tag `service_mark`, and `command`, the prefix to type before a
    management command.
    """
    human = getattr(request, "user", None)
    if not isinstance(human, Human):
        return {"me": None, "command": settings.COMMAND}
    now = timezone.now()
    present_in = presence_leases.session_of(human.pk, now)
    return {
        "me": human,
        "command": settings.COMMAND,
        "waits": waiting_for(human, now, routed_of(request)),
        "is_here": bool(present_in),
        # Only the session that began it may renew it.
        "is_here_by_this_session": present_in == session_key_of(request),
        "my_recovery": Recovery.objects.open(now).filter(human=human).first(),
        # Read by the first mark of a service on the page, if there is one.
        "logos": SimpleLazyObject(shown_logos),
        "section": request.path.split("/")[1],
    }
