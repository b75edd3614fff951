"""Pages on which an administrator denies another human's request, signed as the owner's is."""

import uuid

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST, require_safe

from agentauth.protocol.errors import InvalidStateError, NotFoundError
from approvals.services import grant_decision_signing
from approvals.services.decidable_requests import Case
from approvals.services.setup_and_sign_in import session_key_of
from approvals.views.grants_in_words import describe_grant
from approvals.views.request_helpers import (
    answer,
    chosen_ids,
    human_of,
    member,
    read_posted_json,
    require_sign_in,
    sign_each,
)
from registry.authentication import actor_of
from registry.models import Grant, Human
from registry.roles import Permission
from registry.services.roles import check_permission
from registry.services.routing_rules import Route

_GONE = "Only a pending request can be denied. Revoke the grant instead."


def find_request(request_id: uuid.UUID, human: Human) -> Case:
    """A request as an administrator sees it, who denies by role: no rule names them.

    Raises NotFoundError for others, or if there is none; PermissionDeniedError for another role.
    """
    check_permission(human, Permission.DECIDE)
    rows = Grant.objects.select_related("agent__human", "service_provider")
    grant = rows.filter(pk=request_id).first()
    if grant is None:
        raise NotFoundError
    return Case(grant, human, Route({}), None)


@require_safe
@require_sign_in
def index(request: HttpRequest) -> HttpResponse:
    """The requests chosen in a list, each with a link to its page: each takes a signature."""
    human, now, rows = human_of(request), timezone.now(), []
    check_permission(human, Permission.DECIDE)
    for row_id in chosen_ids(request):
        grant = find_request(row_id, human).grant
        waits = grant.status_at(now) == Grant.Status.PENDING
        path = f"/denials/{grant.pk}/"
        rows.append({"name": grant.agent.name, "refusal": "" if waits else _GONE, "path": path})
    return sign_each(
        request, rows, list_of="registry_grant", title=_("Deny, one by one"), verb=_("Deny")
    )


@require_safe
@require_sign_in
def page(request: HttpRequest, request_id: uuid.UUID) -> HttpResponse:
    case = find_request(request_id, human_of(request))
    grant = case.grant
    if grant.status_at(timezone.now()) != Grant.Status.PENDING:
        raise InvalidStateError(_GONE)
    reason = _("Denied by an administrator.")
    context = {
        "grant": grant,
        "agent": grant.agent,
        "provider": grant.service_provider,
        "lines": describe_grant(grant),
        "denial": grant_decision_signing.draw_denial(case, reason, now=timezone.now()),
        "reason": reason,
    }
    return render(request, "denial.html", context)


@require_POST
@require_sign_in
def review(request: HttpRequest, request_id: uuid.UUID) -> HttpResponse:
    # Before the body is read, so that others get the same error whatever they send.
    case, body = find_request(request_id, human_of(request)), read_posted_json(request)
    found = grant_decision_signing.review_denial(
        case, member(body, "reason"), drawn=member(body, "drawn"), now=timezone.now()
    )
    return answer(sentences=found.sentences, drawn=found.drawn)


@require_POST
@require_sign_in
def statement(request: HttpRequest, request_id: uuid.UUID) -> HttpResponse:
    # Before the body is read, so that others get the same error whatever they send.
    case, body = find_request(request_id, human_of(request)), read_posted_json(request)
    options = grant_decision_signing.begin_denial(
        case,
        member(body, "reason"),
        session_key=session_key_of(request),
        drawn=member(body, "drawn"),
        now=timezone.now(),
    )
    return answer(publicKey=options)


@require_POST
@require_sign_in
def decide(request: HttpRequest, request_id: uuid.UUID) -> HttpResponse:
    case = find_request(request_id, human_of(request))
    grant_decision_signing.decide(
        case,
        session_key=session_key_of(request),
        credential=read_posted_json(request).get("credential"),
        actor=actor_of(request),
        now=timezone.now(),
    )
    return answer(status=_("Denied"), next=f"/admin/registry/grant/{case.grant.pk}/change/")
