"""The button with which an owner asks to renew a grant. It leads to the page that is signed."""

import uuid

from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils import timezone
from django.views.decorators.http import require_POST

from agentauth.protocol.errors import NotFoundError
from approvals.services.renewal_requests import ask_renewal
from approvals.views.page_requests import human_of, require_sign_in
from registry.authentication import actor_of
from registry.models import Grant
from registry.services.agent_owners import own_agent_ids


@require_POST
@require_sign_in
def renew(request: HttpRequest, grant_id: uuid.UUID) -> HttpResponse:
    mine = Grant.objects.filter(agent__in=own_agent_ids(human_of(request)))
    grant = mine.filter(pk=grant_id).select_related("agent", "service_provider").first()
    if grant is None:
        raise NotFoundError
    ask_renewal(grant=grant, actor=actor_of(request), now=timezone.now())
    return HttpResponseRedirect(f"/approvals/{grant.pk}/")
