"""The requests of the script of the "I'm here" switch."""

from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST

from agentauth.protocol.encoding import timestamp
from approvals.services import presence_lease_signing as ceremonies
from approvals.services.setup_and_sign_in import session_key_of
from approvals.views.request_helpers import answer, human_of, read_posted_json, require_sign_in
from registry.authentication import actor_of
from verifier.services import presence_leases


@require_POST
@require_sign_in
def options(request: HttpRequest) -> HttpResponse:
    found = ceremonies.ask_presence(
        human=human_of(request), session_key=session_key_of(request), now=timezone.now()
    )
    return answer(publicKey=found)


@require_POST
@require_sign_in
def begin(request: HttpRequest) -> HttpResponse:
    until = ceremonies.begin_presence(
        human=human_of(request),
        session_key=session_key_of(request),
        credential=read_posted_json(request).get("credential"),
        actor=actor_of(request),
        now=timezone.now(),
    )
    return answer(status=_("You are here"), until=timestamp(until))


@require_POST
@require_sign_in
def renew(request: HttpRequest) -> HttpResponse:
    until = presence_leases.renew(
        human=human_of(request), session_key=session_key_of(request), now=timezone.now()
    )
    return answer(until=timestamp(until))


@require_POST
@require_sign_in
def end(request: HttpRequest) -> HttpResponse:
    ceremonies.end_presence(human=human_of(request), actor=actor_of(request), now=timezone.now())
    return answer(status=_("You are away"))
