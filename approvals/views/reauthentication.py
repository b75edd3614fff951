"""The signature for a sensitive act: requested here, checked by `require_verification` views."""

import uuid
from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec

from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.utils import timezone
from django.views.decorators.http import require_POST

from agentauth.protocol.encoding import read_object
from approvals.services.reauthentication import acting, ask_verification, verify_human
from approvals.services.setup_and_sign_in import session_key_of
from approvals.views.request_helpers import (
    answer,
    human_of,
    member,
    read_posted_json,
    require_sign_in,
)
from registry.authentication import actor_of

P = ParamSpec("P")


@require_POST
@require_sign_in
def options(request: HttpRequest) -> HttpResponse:
    found = ask_verification(
        human=human_of(request),
        act=member(read_posted_json(request), "act"),
        session_key=session_key_of(request),
        now=timezone.now(),
    )
    return answer(publicKey=found)


def require_verification(
    view: Callable[Concatenate[HttpRequest, P], HttpResponseBase],
) -> Callable[Concatenate[HttpRequest, P], HttpResponseBase]:
    """Require a passkey signature for this very request, in `verification`; otherwise 401.

    A JSON member or a form field. The view is one transaction that locks the human (`acting`).
    """

    @wraps(view)
    def wrapped(request: HttpRequest, /, *args: P.args, **kwargs: P.kwargs) -> HttpResponseBase:
        check_verification(request)
        with acting(human_of(request)):
            return view(request, *args, **kwargs)

    return wrapped


def check_verification(request: HttpRequest) -> uuid.UUID:
    """The id of the passkey that signed; the signature is used up.

    Raises VerificationRequiredError, InvalidAssertionError.
    """
    return verify_human(
        human=human_of(request),
        act=request.path,
        session_key=session_key_of(request),
        credential=_read_signature(request),
        actor=actor_of(request),
        now=timezone.now(),
    )


def _read_signature(request: HttpRequest) -> object:
    if request.content_type == "application/json":
        return read_posted_json(request).get("verification")
    text = request.POST.get("verification")
    return read_object(text) if text else None
