"""Recovery pages: for administrators, for the human, and for the holder of the link."""

import uuid

from django.conf import settings
from django.contrib import messages
from django.db.models import Q
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST, require_safe

from agentauth.protocol.encoding import b64u_decode
from agentauth.protocol.errors import EncodingError, NotFoundError
from approvals.models import Recovery
from approvals.services import recovery as recoveries
from approvals.services.recent_recovery import recovery_news
from approvals.services.recovery_alert_mail import mail_is_sent
from approvals.services.setup_and_sign_in import SetupLink, session_key_of, setup_digest
from approvals.sessions import start_session
from approvals.views.reauthentication import check_verification
from approvals.views.request_helpers import (
    HOME,
    answer,
    human_of,
    read_posted_json,
    require_sign_in,
)
from registry.authentication import actor_of
from registry.models import Human
from registry.roles import Permission
from registry.services.roles import check_permission

# Results that a search shows.
_FOUND = 20


@require_safe
@require_sign_in
def own(request: HttpRequest) -> HttpResponse:
    """The recovery of the human's own account, and how to cancel it. The mail links here."""
    news = recovery_news(human_of(request), now=timezone.now())
    return render(request, "recovery.html", {"recovery": news})


@require_POST
@require_sign_in
def cancel(request: HttpRequest, recovery_id: uuid.UUID) -> HttpResponse:
    """Cancel, as the human or an owner. It grants nothing, so a session suffices."""
    human = human_of(request)
    row = Recovery.objects.filter(pk=recovery_id).first()
    if row is None or row.human_id != human.pk:
        check_permission(human, Permission.OWN)
    if row is None:
        raise NotFoundError
    recoveries.cancel_recovery(recovery=row, actor=actor_of(request), now=timezone.now())
    messages.success(request, _("The recovery was cancelled"))
    mine = row.human_id == human.pk
    return HttpResponseRedirect("/recovery/" if mine else f"/recoveries/{row.human_id}/")


@require_safe
@require_sign_in
def index(request: HttpRequest) -> HttpResponse:
    """For administrators: open recoveries, and a search for the human to recover."""
    _admin(request, Permission.READ_ALL)
    wanted = request.GET.get("find", "").strip()
    people = Human.objects.exclude(status=Human.Status.DELETED).order_by("name", "pk")
    found = (
        people.filter(Q(email__icontains=wanted) | Q(name__icontains=wanted))[:_FOUND]
        if wanted
        else []
    )
    under_way = Recovery.objects.open(timezone.now()).select_related("human").order_by("begun_at")
    return render(
        request, "recoveries.html", {"under_way": under_way, "found": found, "wanted": wanted}
    )


@require_safe
@require_sign_in
def person(request: HttpRequest, human_id: uuid.UUID) -> HttpResponse:
    _admin(request, Permission.READ_ALL)
    return _person(request, _find_human(human_id))


@require_POST
@require_sign_in
def start(request: HttpRequest, human_id: uuid.UUID, case: str) -> HttpResponse:
    admin, human = _admin(request), _find_human(human_id)
    check_verification(request)
    recoveries.start_recovery(
        human=human, case=case, admin=admin, actor=actor_of(request), now=timezone.now()
    )
    messages.success(request, _("Recovery started"))
    return HttpResponseRedirect(f"/recoveries/{human.pk}/")


@require_POST
@require_sign_in
def confirm(request: HttpRequest, recovery_id: uuid.UUID) -> HttpResponse:
    admin, row = _admin(request), _find(recovery_id)
    check_verification(request)
    recoveries.confirm_recovery(
        recovery=row, admin=admin, actor=actor_of(request), now=timezone.now()
    )
    messages.success(request, _("The recovery is ready"))
    return HttpResponseRedirect(f"/recoveries/{row.human_id}/")


@require_POST
@require_sign_in
def link(request: HttpRequest, recovery_id: uuid.UUID) -> HttpResponse:
    """Show the link in this response only: no session and no redirect may hold it."""
    admin, row = _admin(request), _find(recovery_id)
    check_verification(request)
    made = recoveries.create_recovery_link(
        recovery=row, admin=admin, actor=actor_of(request), now=timezone.now()
    )
    return _person(request, row.human, made)


@require_safe
def link_page(request: HttpRequest, code: str) -> HttpResponse:
    return render(request, "recover.html", {"code": code, "recovery": _find_by_code(code)})


@require_POST
def link_options(request: HttpRequest, code: str) -> HttpResponse:
    row, session_key = _find_by_code(code), session_key_of(request)
    options = recoveries.begin_recovery(recovery=row, session_key=session_key, now=timezone.now())
    return answer(publicKey=options)


@require_POST
def link_finish(request: HttpRequest, code: str) -> HttpResponse:
    human = recoveries.finish_recovery(
        recovery=_find_by_code(code),
        credential=read_posted_json(request).get("credential"),
        session_key=session_key_of(request),
        actor=actor_of(request),
        now=timezone.now(),
    )
    if not human.is_active:
        return answer(status=_("Passkey created"), next="/recovered/")
    start_session(request, human, now=timezone.now())
    return answer(status=_("Passkey created"), next=HOME)


@require_safe
def recovered(request: HttpRequest) -> HttpResponse:
    """Landing page after a recovery if the account is still suspended. It reveals no account."""
    return render(request, "recovered.html")


def _person(request: HttpRequest, human: Human, made: SetupLink | None = None) -> HttpResponse:
    now, me = timezone.now(), human_of(request)
    row = (
        Recovery.objects.open(now)
        .filter(human=human)
        .select_related("begun_by", "confirmed_by")
        .first()
    )
    ready = row is not None and row.ready_at is not None and row.ready_at <= now
    context = {
        "human": human,
        "recovery": row,
        "ready": ready,
        "may_decide": row is not None and not ready and me.pk not in (row.begun_by_id, human.pk),
        "is_me": human.pk == me.pk,
        "is_owner": Permission.OWN in me.permissions,
        "made": made,
        "wait": settings.RECOVERY_WAIT_HOURS,
        "mailed": mail_is_sent(),
        "news": recovery_news(human, now=now),
    }
    return render(request, "recovery_person.html", context)


def _admin(request: HttpRequest, permission: Permission = Permission.OWN) -> Human:
    human = human_of(request)
    check_permission(human, permission)
    return human


def _find_human(human_id: uuid.UUID) -> Human:
    human = Human.objects.exclude(status=Human.Status.DELETED).filter(pk=human_id).first()
    if human is None:
        raise NotFoundError
    return human


def _find(recovery_id: uuid.UUID) -> Recovery:
    row = Recovery.objects.select_related("human").filter(pk=recovery_id).first()
    if row is None:
        raise NotFoundError
    return row


def _find_by_code(code: str) -> Recovery:
    try:
        digest = setup_digest(b64u_decode(code))
    except EncodingError:
        raise NotFoundError(
            "This recovery link is not valid. Ask an administrator for a new one."
        ) from None
    return recoveries.find_by_link(digest, now=timezone.now())
