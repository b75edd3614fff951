"""Starts a renewal: records the request and redirects to the page where it is signed."""

import uuid

from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils import timezone
from django.views.decorators.http import require_POST

from agentauth.protocol.errors import NotFoundError
from approvals.services import renewal_request_messages
from approvals.views.request_helpers import human_of, require_sign_in
from registry.authentication import actor_of
from registry.models import Grant
from registry.services.agent_owners import own_agent_ids


@require_POST
@require_sign_in
def request_renewal(request: HttpRequest, grant_id: uuid.UUID) -> HttpResponse:
    own_grants = Grant.objects.filter(agent__in=own_agent_ids(human_of(request)))
    grant = own_grants.filter(pk=grant_id).select_related("agent", "service_provider").first()
    if grant is None:
        raise NotFoundError
    renewal_request_messages.request_renewal(
        grant=grant, actor=actor_of(request), now=timezone.now()
    )
    return HttpResponseRedirect(f"/approvals/{grant.pk}/")
