"""Shared by page views: who is signed in, who acts, how posted JSON is read and answered."""

import uuid
from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec
from urllib.parse import urlencode

from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse
from django.http.response import HttpResponseBase
from django.shortcuts import render
from django.urls import reverse
from django.utils import timezone
from django.utils.http import url_has_allowed_host_and_scheme

from agentauth.protocol.encoding import read_object
from agentauth.protocol.errors import AgentAuthError, InvalidRequestError
from approvals.services.routed_requests import Routed, routed_to
from approvals.views.paging import id_or_none_of_ours
from registry.admin import MOST_AT_ONCE
from registry.models import Human

P = ParamSpec("P")
HOME = "/approvals/"


class SignInRequiredError(AgentAuthError):
    code = "sign_in_required"


def require_sign_in(
    view: Callable[Concatenate[HttpRequest, P], HttpResponseBase],
) -> Callable[Concatenate[HttpRequest, P], HttpResponseBase]:
    """Require a signed-in human: a page redirects to the sign-in and back, a script gets 401."""

    @wraps(view)
    def wrapped(request: HttpRequest, /, *args: P.args, **kwargs: P.kwargs) -> HttpResponseBase:
        if isinstance(request.user, Human):
            return view(request, *args, **kwargs)
        if request.method not in {"GET", "HEAD"}:
            raise SignInRequiredError("You are signed out. Sign in again, then repeat this.")
        return HttpResponseRedirect(f"/sign-in/?{urlencode({'next': request.get_full_path()})}")

    return wrapped


def human_of(request: HttpRequest) -> Human:
    """The signed-in human of a `require_sign_in` view."""
    assert isinstance(request.user, Human)
    return request.user


def routed_of(request: HttpRequest) -> Routed:
    """`routed_to` the signed-in human, read once: the page and its navigation both need it."""
    found: Routed | None = getattr(request, "_routed", None)
    if found is None:
        found = routed_to(human_of(request), timezone.now())
        request._routed = found  # type: ignore[attr-defined]  # noqa: SLF001 — of this function
    return found


def read_posted_json(request: HttpRequest) -> dict[str, object]:
    """The JSON object a script of ours posted. Raises InvalidRequestError."""
    # CSRF: another site's form can send text that reads as JSON, but not with this media type.
    if request.content_type != "application/json":
        raise InvalidRequestError("Send the body as application/json.")
    return read_object(request.body)


def member(body: dict[str, object], name: str, default: str | None = None) -> str:
    """A text member of posted JSON. Raises InvalidRequestError if it is absent or not text."""
    value = body.get(name, default)
    if not isinstance(value, str):
        raise InvalidRequestError(f"`{name}` is missing or is not text.")
    return value


def answer(**members: Any) -> JsonResponse:
    """A JSON answer to a script of ours."""
    return JsonResponse(members, headers={"Cache-Control": "no-store"})


def safe_next(request: HttpRequest) -> str:
    """Where to go after the sign-in: a path on this site, never another site (open redirect)."""
    target = request.GET.get("next", "")
    inside = url_has_allowed_host_and_scheme(target, allowed_hosts=None) and target.startswith("/")
    return target if inside else HOME


def chosen_ids(request: HttpRequest) -> list[uuid.UUID]:
    """The ids that a list passes on in `?id=`, each once, in their order."""
    return list(dict.fromkeys(map(id_or_none_of_ours, request.GET.getlist("id")[:MOST_AT_ONCE])))


def chosen_of(request: HttpRequest) -> str:
    """How many rows were chosen in a list, if these are only the first of them; otherwise empty."""
    number = request.GET.get("of", "")
    return number if number.isascii() and number.isdecimal() else ""


def sign_each(
    request: HttpRequest, rows: list[dict[str, str]], *, list_of: str, title: str, verb: str
) -> HttpResponse:
    """The rows chosen in the list of the model `list_of`, such as `registry_grant`.

    Each is a link to the page where it is signed, unless it has a refusal: `name`, `refusal`,
    `path`.
    """
    context = {
        "rows": rows,
        "signs": any(not each["refusal"] for each in rows),
        "back": reverse(f"admin:{list_of}_changelist"),
        "of": chosen_of(request),
        "title": title,
        "verb": verb,
    }
    return render(request, "sign_each.html", context)
