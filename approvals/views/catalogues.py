"""The page on which an administrator approves or refuses a version of a service's words."""

import uuid

from django.contrib import messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST, require_safe

from agentauth.protocol.errors import NotFoundError
from approvals.services import catalogue_approval_signing
from approvals.services.page_snapshot_token import drawn_token
from approvals.services.setup_and_sign_in import session_key_of
from approvals.views.request_helpers import (
    answer,
    human_of,
    member,
    read_posted_json,
    require_sign_in,
)
from registry.authentication import actor_of
from registry.roles import Permission
from registry.services.catalogues import read_catalogue, refuse_catalogue


@require_safe
@require_sign_in
def page(request: HttpRequest, catalogue_id: uuid.UUID) -> HttpResponse:
    human = human_of(request)
    row = catalogue_approval_signing.find_version(
        catalogue_id, human=human, permission=Permission.READ_REQUESTS
    )
    review = catalogue_approval_signing.review_version(row)
    context = {
        "row": row,
        "provider": row.service_provider,
        "entries": review.entries,
        "warnings": review.warnings,
        "lines": review.text.splitlines(),
        "sha256": read_catalogue(row).ref.sha256,
        "is_owner": Permission.OWN in human.permissions,
        "drawn": drawn_token(review.page, now=timezone.now()),
        "receipt": catalogue_approval_signing.approval_receipt(row),
    }
    return render(request, "catalogue.html", context)


@require_POST
@require_sign_in
def statement(request: HttpRequest, catalogue_id: uuid.UUID) -> HttpResponse:
    human = human_of(request)
    # Before reading the body, so that other people get the same error whatever they send.
    row = catalogue_approval_signing.find_version(catalogue_id, human=human)
    options = catalogue_approval_signing.begin_approval(
        row=row,
        human=human,
        drawn=member(read_posted_json(request), "drawn"),
        session_key=session_key_of(request),
        now=timezone.now(),
    )
    return answer(publicKey=options)


@require_POST
@require_sign_in
def decide(request: HttpRequest, catalogue_id: uuid.UUID) -> HttpResponse:
    human = human_of(request)
    row = catalogue_approval_signing.find_version(catalogue_id, human=human)
    catalogue_approval_signing.finish_approval(
        row=row,
        human=human,
        session_key=session_key_of(request),
        credential=read_posted_json(request).get("credential"),
        actor=actor_of(request),
        now=timezone.now(),
    )
    return answer(status=_("Approved"), next=f"/catalogues/{row.pk}/")


@require_POST
@require_sign_in
def refuse(request: HttpRequest, catalogue_id: uuid.UUID) -> HttpResponse:
    row = catalogue_approval_signing.find_version(catalogue_id, human=human_of(request))
    refuse_catalogue(row=row, actor=actor_of(request), now=timezone.now())
    messages.success(request, _("Refused"))
    return HttpResponseRedirect(f"/catalogues/{row.pk}/")


@require_safe
@require_sign_in
def receipt(request: HttpRequest, catalogue_id: uuid.UUID) -> HttpResponse:
    """The signed receipt of the approval."""
    human = human_of(request)
    row = catalogue_approval_signing.find_version(
        catalogue_id, human=human, permission=Permission.READ_REQUESTS
    )
    found = catalogue_approval_signing.approval_receipt(row)
    if found is None:
        raise NotFoundError("There is no receipt for this version.")
    headers = {"Content-Disposition": f"attachment; filename=catalogue-{row.pk}.jws"}
    return HttpResponse(found.compact, content_type="application/jose", headers=headers)
