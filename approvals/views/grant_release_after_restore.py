"""The pages on which an owner releases grants that a restore suspended."""

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST, require_safe

from agentauth.protocol.json_fields import text
from agentauth.protocol.passkey_statements import MAX_RELEASED
from approvals.services import grant_release_after_restore
from approvals.services.log_break_signing import find_break
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

_UUID_LENGTH = 36


@require_safe
@require_sign_in
def page(request: HttpRequest, name: str) -> HttpResponse:
    row = find_break(name, human=human_of(request))
    now = timezone.now()
    found = grant_release_after_restore.judge_suspended_grants(row, now=now)
    shown = grant_release_after_restore.choosing_page(row, [each.grant for each in found.grants])
    context = {"row": row, "found": found, "drawn": drawn_token(shown, now=now)}
    return render(request, "release.html", context)


@require_POST
@require_sign_in
def review(request: HttpRequest, name: str) -> HttpResponse:
    human, now = human_of(request), timezone.now()
    row, ids = find_break(name, human=human), request.POST.getlist("grant")
    grants, shown = grant_release_after_restore.take_second_step(
        row=row,
        human=human,
        session_key=session_key_of(request),
        ids=ids,
        drawn=request.POST.get("drawn", ""),
        actor=actor_of(request),
        now=now,
    )
    context = {
        "row": row,
        "grants": grants,
        "ids": ",".join(ids),
        "lines": shown.shown["text"].splitlines(),
        "drawn": drawn_token(shown, now=now),
    }
    return render(request, "release_review.html", context)


@require_POST
@require_sign_in
def statement(request: HttpRequest, name: str) -> HttpResponse:
    human = human_of(request)
    # Before the body is read, so that others get the same error whatever they send.
    row = find_break(name, human=human)
    body = read_posted_json(request)
    ids = text(body.get("grants"), "grants", maximum=(_UUID_LENGTH + 1) * MAX_RELEASED)
    options = grant_release_after_restore.begin_release(
        row=row,
        human=human,
        session_key=session_key_of(request),
        ids=ids.split(","),
        drawn=member(body, "drawn"),
        now=timezone.now(),
    )
    return answer(publicKey=options)


@require_POST
@require_sign_in
def decide(request: HttpRequest, name: str) -> HttpResponse:
    human = human_of(request)
    grant_release_after_restore.finish_release(
        row=find_break(name, human=human),
        human=human,
        session_key=session_key_of(request),
        credential=read_posted_json(request).get("credential"),
        actor=actor_of(request),
        now=timezone.now(),
    )
    return answer(status=_("Released"), next=f"/restores/{name}/release/")
