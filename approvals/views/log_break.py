"""The page on which an owner signs that the log continues after a restore."""

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST, require_safe

from approvals.services import log_break_signing
from approvals.services.page_snapshot_token import drawn_token
from approvals.services.passkey_signature_flow import receipt_of
from approvals.services.setup_and_sign_in import session_key_of
from approvals.views.request_helpers import (
    answer,
    human_of,
    member,
    read_posted_json,
    require_sign_in,
)
from audit.checkpoints.log_breaks import origin, shown_break
from registry.authentication import actor_of
from registry.roles import Permission


@require_safe
@require_sign_in
def page(request: HttpRequest, name: str) -> HttpResponse:
    human = human_of(request)
    row = log_break_signing.find_break(name, human=human, permission=Permission.READ_ALL)
    shown = log_break_signing.break_page(row, human)
    context = {
        "row": row,
        "origin": origin(row.name),
        "previous": origin(row.previous),
        "shown": shown_break(row),
        "lines": shown.shown["text"].splitlines(),
        "vkeys": shown.shown["vkeys"],
        "root": shown.shown["root"],
        "drawn": drawn_token(shown, now=timezone.now()),
        "is_owner": Permission.OWN in human.permissions,
        "receipt": receipt_of(log_break_signing.KIND, row.name),
    }
    return render(request, "restore.html", context)


@require_POST
@require_sign_in
def statement(request: HttpRequest, name: str) -> HttpResponse:
    human = human_of(request)
    # Before the body is read, so that others get the same error whatever they send.
    row = log_break_signing.find_break(name, human=human)
    options = log_break_signing.begin_signing(
        row=row,
        human=human,
        drawn=member(read_posted_json(request), "drawn"),
        session_key=session_key_of(request),
        now=timezone.now(),
    )
    return answer(publicKey=options)


@require_POST
@require_sign_in
def decide(request: HttpRequest, name: str) -> HttpResponse:
    human = human_of(request)
    log_break_signing.finish_signing(
        row=log_break_signing.find_break(name, human=human),
        human=human,
        session_key=session_key_of(request),
        credential=read_posted_json(request).get("credential"),
        actor=actor_of(request),
        now=timezone.now(),
    )
    return answer(status=_("Signed"), next=f"/restores/{name}/")
