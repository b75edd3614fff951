"""Front page, setup, sign-in and sign-out."""

from urllib.parse import urlencode

from django.conf import settings
from django.contrib.auth import logout
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.utils import timezone
from django.utils.translation import get_language
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST, require_safe

from agentauth.protocol.encoding import b64u_decode
from agentauth.protocol.errors import EncodingError, NotFoundError
from approvals.models import SetupCode
from approvals.role_words import ROLES
from approvals.services import setup_and_sign_in
from approvals.sessions import start_session
from approvals.views.request_helpers import (
    HOME,
    answer,
    human_of,
    member,
    read_posted_json,
    require_sign_in,
    safe_next,
)
from registry.authentication import actor_of
from registry.models import Human

# With SameSite=Strict, the first request after a click elsewhere, as in a mail, has no cookies.
_FROM_US = ("same-origin", "none")


@require_safe
def front(request: HttpRequest) -> HttpResponse:
    return render(request, "front.html", {"url": settings.PUBLIC_URL, "demo": _demo_command()})


def _demo_command() -> str:
    """The command that runs the demo against this registry; empty in production."""
    if not settings.DEVELOPMENT:
        return ""
    return (
        "make demo"
        if settings.PUBLIC_URL == settings.DEVELOPMENT_URL
        else f"make demo PUBLIC_URL={settings.PUBLIC_URL}"
    )


@require_safe
def sign_in(request: HttpRequest) -> HttpResponse:
    """The sign-in page; visitors from elsewhere first hop within our site, to send cookies."""
    target = safe_next(request)
    if isinstance(request.user, Human):
        return HttpResponseRedirect(target)
    if "hop" not in request.GET and request.headers.get("Sec-Fetch-Site", "none") not in _FROM_US:
        hop = f"/sign-in/?{urlencode({'next': target, 'hop': '1'})}"
        return render(request, "hop.html", {"hop": hop})
    return render(
        request, "sign_in.html", {"finish": f"/sign-in/finish?{urlencode({'next': target})}"}
    )


@require_POST
def sign_in_options(request: HttpRequest) -> HttpResponse:
    session_key = setup_and_sign_in.session_key_of(request)
    return answer(
        publicKey=setup_and_sign_in.begin_sign_in(session_key=session_key, now=timezone.now())
    )


@require_POST
def sign_in_finish(request: HttpRequest) -> HttpResponse:
    body = read_posted_json(request)
    human = setup_and_sign_in.finish_sign_in(
        credential=body.get("credential"),
        session_key=setup_and_sign_in.session_key_of(request),
        request_id=actor_of(request).request_id,
        now=timezone.now(),
    )
    start_session(request, human, now=timezone.now())
    return answer(status=_("Signed in"), next=safe_next(request))


@require_POST
@require_sign_in
def sign_out(request: HttpRequest) -> HttpResponse:
    setup_and_sign_in.sign_out(human=human_of(request), actor=actor_of(request), now=timezone.now())
    logout(request)
    return HttpResponseRedirect("/sign-in/")


@require_safe
def setup(request: HttpRequest, code: str) -> HttpResponse:
    setup_code = _setup_code(code)
    role = setup_code.named_role and ROLES[setup_code.named_role]
    return render(request, "setup.html", {"code": code, "setup_code": setup_code, "role": role})


@require_POST
def setup_options(request: HttpRequest, code: str) -> HttpResponse:
    body, setup_code = read_posted_json(request), _setup_code(code)
    options = setup_and_sign_in.begin_setup(
        setup_code=setup_code,
        name=member(body, "name"),
        email=member(body, "email", ""),
        time_zone=member(body, "time_zone", ""),
        language=get_language() or settings.LANGUAGE_CODE,
        session_key=setup_and_sign_in.session_key_of(request),
        now=timezone.now(),
    )
    return answer(publicKey=options)


@require_POST
def setup_finish(request: HttpRequest, code: str) -> HttpResponse:
    human = setup_and_sign_in.finish_setup(
        setup_code=_setup_code(code),
        credential=read_posted_json(request).get("credential"),
        session_key=setup_and_sign_in.session_key_of(request),
        actor=actor_of(request),
        now=timezone.now(),
    )
    start_session(request, human, now=timezone.now())
    return answer(status=_("Passkey created"), next=HOME)


def _setup_code(code: str) -> SetupCode:
    try:
        digest = setup_and_sign_in.setup_digest(b64u_decode(code))
    except EncodingError:
        raise NotFoundError("This setup link is not valid. Ask for a new one.") from None
    return setup_and_sign_in.find_setup_code(digest, now=timezone.now())
