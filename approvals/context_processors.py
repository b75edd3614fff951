"""Template context of every page: waiting items, presence, an open recovery, the command prefix."""

from typing import Any

from django.conf import settings
from django.http import HttpRequest
from django.utils import timezone
from django.utils.functional import SimpleLazyObject

from approvals.models import Recovery
from approvals.services.waiting import waiting_for
from approvals.views.routed import routed_of
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
    return {
        "me": human,
        "command": settings.COMMAND,
        "waits": waiting_for(human, now, routed_of(request)),
        "is_here": presence_leases.is_online(human.pk, now),
        "my_recovery": Recovery.objects.open(now).filter(human=human).first(),
        # Read by the first mark of a service on the page, if there is one.
        "logos": SimpleLazyObject(shown_logos),
        "section": request.path.split("/")[1],
    }
