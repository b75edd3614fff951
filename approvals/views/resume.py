"""The pages on which an owner or an administrator signs that they lift their own suspension."""

import uuid

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST, require_safe

from agentauth.protocol.errors import InvalidStateError, NotFoundError
from approvals.services import resuming
from approvals.services.people import session_key_of
from approvals.views.access import answer, human_of, posted, signed_in
from approvals.views.paging import chosen_ids
from registry.authentication import actor_of
from registry.models import Agent, Grant, Human


@require_safe
@signed_in
def index(request: HttpRequest, kind: str) -> HttpResponse:
    """The rows an administrator chose in a list, each with the link to its own page: each takes a signature."""
    human, now, rows = human_of(request), timezone.now(), []
    for row_id in chosen_ids(request):
        row, refusal = resuming.find_row(kind, row_id, human=human), ""
        try:
            resuming.find_suspension(kind, row_id, human=human, now=now)
        except InvalidStateError as error:
            refusal = error.description
        rows.append({"name": resuming.name_of(row), "refusal": refusal, "path": f"/resume/{kind}/{row_id}/"})
    return render(
        request, "sign_each.html", {"rows": rows, "title": _("Resume, one by one"), "verb": _("Resume")}
    )


@require_safe
@signed_in
def page(request: HttpRequest, kind: str, row_id: uuid.UUID) -> HttpResponse:
    human = human_of(request)
    found = resuming.find_suspension(kind, row_id, human=human, now=timezone.now())
    context = {"found": found, "row": found.row, "kind": kind, "back": _after(found.row, human)}
    return render(request, "resume.html", context)


@require_POST
@signed_in
def statement(request: HttpRequest, kind: str, row_id: uuid.UUID) -> HttpResponse:
    human, now = human_of(request), timezone.now()
    found = resuming.find_suspension(kind, row_id, human=human, now=now)
    options = resuming.begin_resume(found=found, human=human, session_key=session_key_of(request), now=now)
    return answer(publicKey=options)


@require_POST
@signed_in
def decide(request: HttpRequest, kind: str, row_id: uuid.UUID) -> HttpResponse:
    human = human_of(request)
    # Before the body is read: a stranger learns nothing from which comes first.
    row = resuming.find_row(kind, row_id, human=human)
    resuming.finish_resume(
        row=row,
        kind=kind,
        human=human,
        session_key=session_key_of(request),
        credential=posted(request).get("credential"),
        actor=actor_of(request),
        now=timezone.now(),
    )
    return answer(status="Resumed", next=_after(row, human))


@require_safe
@signed_in
def receipt(request: HttpRequest, kind: str, row_id: uuid.UUID) -> HttpResponse:
    """The signed receipt of the last time it was resumed."""
    found = resuming.last_resume(resuming.find_row(kind, row_id, human=human_of(request)))
    if found is None:
        raise NotFoundError("This was never resumed, or before resuming was signed.")
    name = f"attachment; filename=resumed-{row_id}.jws"
    headers = {"Content-Disposition": name}
    return HttpResponse(found.compact, content_type="application/jose", headers=headers)


def _after(row: resuming.Row, human: Human) -> str:
    """Where the human sees it from: their own pages, or the control room."""
    agent = row.agent if isinstance(row, Grant) else row
    if isinstance(agent, Agent) and agent.human_id == human.pk:
        return f"/agents/{agent.pk}/"
    return reverse(f"admin:registry_{type(row).__name__.lower()}_change", args=[row.pk])
