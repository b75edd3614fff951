"""The page on which an administrator signs that the log continues after a restore."""

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.views.decorators.http import require_POST, require_safe

from approvals.services import break_signing
from approvals.services.people import session_key_of
from approvals.services.signatures import receipt_of
from approvals.views.access import answer, human_of, posted, signed_in
from audit.breaks import origin, shown_break
from registry.authentication import actor_of


@require_safe
@signed_in
def page(request: HttpRequest, name: str) -> HttpResponse:
    row = break_signing.find_break(name, human=human_of(request))
    context = {
        "row": row,
        "origin": origin(row.name),
        "previous": origin(row.previous),
        "shown": shown_break(row),
        "receipt": receipt_of(break_signing.KIND, row.name),
    }
    return render(request, "restore.html", context)


@require_POST
@signed_in
def statement(request: HttpRequest, name: str) -> HttpResponse:
    human = human_of(request)
    options = break_signing.begin_signing(
        row=break_signing.find_break(name, human=human),
        human=human,
        session_key=session_key_of(request),
        now=timezone.now(),
    )
    return answer(publicKey=options)


@require_POST
@signed_in
def decide(request: HttpRequest, name: str) -> HttpResponse:
    human = human_of(request)
    break_signing.finish_signing(
        row=break_signing.find_break(name, human=human),
        human=human,
        session_key=session_key_of(request),
        credential=posted(request).get("credential"),
        actor=actor_of(request),
        now=timezone.now(),
    )
    return answer(status="Signed", next=f"/restores/{name}/")
