"""The pages on which an owner or an administrator signs that they lift their own suspension."""

import uuid

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST, require_safe

from agentauth.protocol.errors import InvalidStateError, NotFoundError
from approvals.services import resume_signing
from approvals.services.page_snapshot_token import drawn_token
from approvals.services.resume_signing import Party
from approvals.services.setup_and_sign_in import session_key_of
from approvals.views.destructive_actions import LISTS
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
from registry.models import Grant
from registry.refusal_translation import refusal_text
from registry.roles import Permission
from registry.services.roles import check_permission


@require_safe
@require_sign_in
def index(request: HttpRequest, kind: str) -> HttpResponse:
    """The rows chosen in a list, each with a link to its page: each takes a signature."""
    human, now, rows = human_of(request), timezone.now(), []
    check_permission(human, resume_signing.permission_to_resume(kind))
    if kind not in resume_signing.ROWS:
        raise NotFoundError
    for row_id in chosen_ids(request):
        row, refusal = resume_signing.find_row(kind, row_id, human=human, party="administrator"), ""
        try:
            resume_signing.find_suspension(row, party="administrator", now=now)
        except InvalidStateError as error:
            refusal = refusal_text(error)
        path = f"/resume/{kind}/{row_id}/"
        rows.append({"name": resume_signing.name_of(row), "refusal": refusal, "path": path})
    return sign_each(
        request, rows, list_of=LISTS[kind], title=_("Resume, one by one"), verb=_("Resume")
    )


@require_safe
@require_sign_in
def page(request: HttpRequest, /, kind: str, party: Party, **ids: uuid.UUID) -> HttpResponse:
    row = _row(request, kind, party, ids)
    found = resume_signing.find_suspension(row, party=party, now=timezone.now())
    context = {
        "found": found,
        "row": row,
        "kind": kind,
        "back": _after(row, party),
        "lines": found.text.splitlines(),
        "drawn": drawn_token(resume_signing.resume_page(found), now=timezone.now()),
    }
    return render(request, "resume.html", context)


@require_POST
@require_sign_in
def statement(request: HttpRequest, /, kind: str, party: Party, **ids: uuid.UUID) -> HttpResponse:
    now = timezone.now()
    # Before the body is read, so that others get the same error whatever they send.
    found = resume_signing.find_suspension(_row(request, kind, party, ids), party=party, now=now)
    options = resume_signing.begin_resume(
        found=found,
        human=human_of(request),
        drawn=member(read_posted_json(request), "drawn"),
        session_key=session_key_of(request),
        now=now,
    )
    return answer(publicKey=options)


@require_POST
@require_sign_in
def decide(request: HttpRequest, /, kind: str, party: Party, **ids: uuid.UUID) -> HttpResponse:
    # Before the body is read, so that others get the same error whatever they send.
    row = _row(request, kind, party, ids)
    resume_signing.finish_resume(
        row=row,
        party=party,
        human=human_of(request),
        session_key=session_key_of(request),
        credential=read_posted_json(request).get("credential"),
        actor=actor_of(request),
        now=timezone.now(),
    )
    return answer(status=_("Resumed"), next=_after(row, party))


@require_safe
@require_sign_in
def receipt(request: HttpRequest, /, kind: str, party: Party, **ids: uuid.UUID) -> HttpResponse:
    """The signed receipt of the last time it was resumed."""
    row = _row(request, kind, party, ids, Permission.READ_ALL)
    found = resume_signing.last_resume(row)
    if found is None:
        raise NotFoundError("There is no receipt of resuming this.")
    headers = {"Content-Disposition": f"attachment; filename=resumed-{row.pk}.jws"}
    return HttpResponse(found.compact, content_type="application/jose", headers=headers)


def _row(
    request: HttpRequest,
    kind: str,
    party: Party,
    ids: dict[str, uuid.UUID],
    permission: Permission | None = None,
) -> resume_signing.Row:
    """The row named by the single id in the path."""
    [row_id] = ids.values()
    human = human_of(request)
    return resume_signing.find_row(kind, row_id, human=human, party=party, permission=permission)


def _after(row: resume_signing.Row, party: Party) -> str:
    """The page that shows the row: the owner's, or the control room's."""
    if party == "owner":
        agent = row.agent if isinstance(row, Grant) else row
        return f"/agents/{agent.pk}/"
    return reverse(f"admin:registry_{type(row).__name__.lower()}_change", args=[row.pk])
