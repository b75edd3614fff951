"""A human's settings: passkeys, enrolment codes, time zone, sessions, the export of their data.

`notifications` has the acts of its section.
"""

import uuid
from zoneinfo import available_timezones

from django.contrib import messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, StreamingHttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST, require_safe

from agentauth.protocol.errors import InvalidRequestError
from approvals.models import Passkey
from approvals.notifications.shown_channels import notifications_of
from approvals.role_words import ROLES
from approvals.services import data_export, passkey_management, session_management
from approvals.services.reauthentication import acting
from approvals.services.recent_recovery import recovery_news
from approvals.services.setup_and_sign_in import session_key_of
from approvals.sessions import keep_session
from approvals.views.approvers_in_words import own_absences
from approvals.views.reauthentication import check_verification, require_verification
from approvals.views.request_helpers import answer, human_of, read_posted_json, require_sign_in
from registry.authentication import actor_of
from registry.refusal_recording import record_refused_request
from registry.refusal_translation import refusal_text
from registry.services.enrolment_codes import create_enrolment_code
from registry.services.humans import change_time_zone, end_sessions


@require_safe
@require_sign_in
def page(request: HttpRequest) -> HttpResponse:
    return render_page(request)


@require_POST
@require_sign_in
@require_verification
def passkey_options(request: HttpRequest) -> HttpResponse:
    found = passkey_management.begin_passkey(
        human=human_of(request), session_key=session_key_of(request), now=timezone.now()
    )
    return answer(publicKey=found)


@require_POST
@require_sign_in
def passkey_finish(request: HttpRequest) -> HttpResponse:
    passkey_management.finish_passkey(
        human=human_of(request),
        credential=read_posted_json(request).get("credential"),
        session_key=session_key_of(request),
        actor=actor_of(request),
        now=timezone.now(),
    )
    return answer(status=_("Passkey added"), next="/settings/")


@require_POST
@require_sign_in
def passkey_rename(request: HttpRequest, passkey_id: uuid.UUID) -> HttpResponse:
    """Takes a session alone: a name gives nothing."""
    human, typed = human_of(request), request.POST.get("name", "")
    try:
        with acting(human):
            passkey_management.rename_passkey(
                human=human,
                passkey_id=str(passkey_id),
                name=typed.strip(),
                actor=actor_of(request),
                now=timezone.now(),
            )
    except InvalidRequestError as error:
        record_refused_request(request, error)
        return render_page(
            request,
            renamed=passkey_id,
            typed_name=typed,
            name_error=refusal_text(error),
            status=400,
        )
    return _back(request, _("Passkey renamed"))


@require_POST
@require_sign_in
def passkey_remove(request: HttpRequest, passkey_id: uuid.UUID) -> HttpResponse:
    """Remove a passkey. This session goes on if another passkey signed for the removal."""
    signed_by = check_verification(request)
    human, actor = human_of(request), actor_of(request)
    passkey_management.remove_passkey(
        human=human, passkey_id=str(passkey_id), actor=actor, now=timezone.now()
    )
    if signed_by != passkey_id:
        keep_session(request, human)
    return _back(
        request, _("Passkey removed. Your presence and every other session of yours have ended.")
    )


@require_POST
@require_sign_in
@require_verification
def enrolment_code(request: HttpRequest) -> HttpResponse:
    """Show the code in this response only: no session and no redirect may hold it."""
    human, actor = human_of(request), actor_of(request)
    row, code = create_enrolment_code(human=human, actor=actor, now=timezone.now())
    return render_page(request, code=code, expires_at=row.expires_at)


@require_POST
@require_sign_in
def time_zone(request: HttpRequest) -> HttpResponse:
    zone = request.POST.get("time_zone", "")
    change_time_zone(
        human=human_of(request), zone=zone, actor=actor_of(request), now=timezone.now()
    )
    return _back(request, _("Time zone saved"))


@require_POST
@require_sign_in
@require_verification
def data(request: HttpRequest) -> StreamingHttpResponse:
    """Everything kept about the human, as one file."""
    human, now = human_of(request), timezone.now()
    lines = data_export.export_data(human=human, actor=actor_of(request), now=now)
    name = f"attachment; filename=agentauth-{human.pk}-{now:%Y-%m-%d}.json"
    headers = {"Content-Disposition": name, "Cache-Control": "no-store"}
    return StreamingHttpResponse(lines, content_type="application/json", headers=headers)


@require_POST
@require_sign_in
def session_end(request: HttpRequest, session_id: uuid.UUID) -> HttpResponse:
    session_management.end_session(
        human=human_of(request),
        session_id=session_id,
        session_key=session_key_of(request),
        actor=actor_of(request),
        now=timezone.now(),
    )
    return _back(request, _("Signed out there"))


@require_POST
@require_sign_in
def sessions_end_others(request: HttpRequest) -> HttpResponse:
    human = human_of(request)
    end_sessions(human=human, actor=actor_of(request), now=timezone.now())
    keep_session(request, human)
    return _back(request, _("Signed out everywhere else. Your presence has ended too."))


def render_page(request: HttpRequest, *, status: int = 200, **more: object) -> HttpResponse:
    """The settings page. `more`: what is shown once, such as a new code."""
    human, now = human_of(request), timezone.now()
    key = session_key_of(request)
    context = {
        "human": human,
        "role": human.role and ROLES[human.role],
        "sessions": session_management.sessions_of(human, session_key=key, now=now),
        "passkeys": list(Passkey.objects.filter(human=human).order_by("created_at")),
        **notifications_of(human),
        "zones": sorted(available_timezones()),
        "recovery": recovery_news(human, now=now),
        "absences": own_absences(human, now),
    }
    return render(request, "settings.html", context | more, status=status)


def _back(request: HttpRequest, word: str) -> HttpResponse:
    messages.success(request, word)
    return HttpResponseRedirect("/settings/")
