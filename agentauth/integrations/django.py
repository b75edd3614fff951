"""Protect Django views: a decorator names the act, a middleware asks verify before the view runs.

    @protected(requires("read", "calendar/{name}"))
    def events(request, name): …

Settings of the service provider's project:

    AGENTAUTH = {
        "REGISTRY_URL": "https://registry.example.com",
        "CLIENT_ID": "…", "CLIENT_SECRET": "…",
        "AUDIENCE": "https://api.example.com/v1",
    }
    # Put one of the two first: AgentAuthMiddleware checks every request but those of views with
    # `unprotected`, ProtectedMiddleware only views with `protected`.
    MIDDLEWARE = ["agentauth.integrations.django.AgentAuthMiddleware", …]
    INSTALLED_APPS = ["agentauth.integrations.django.Checks", …]  # for `manage.py check`
"""

from collections.abc import Callable
from typing import Any, Final

try:
    from django.apps import AppConfig
    from django.conf import settings
    from django.core.checks import CheckMessage, Error, register
    from django.core.exceptions import ImproperlyConfigured
    from django.http import HttpRequest, HttpResponse
    from django.http.response import HttpResponseBase
    from django.middleware.cache import FetchFromCacheMiddleware, UpdateCacheMiddleware
    from django.urls import Resolver404, get_resolver
    from django.utils.module_loading import import_string
except ModuleNotFoundError as error:
    raise ImportError(
        "agentauth.integrations.django needs Django: install agentauth-sdk[django]."
    ) from error

from agentauth.protocol.errors import AgentAuthError
from agentauth.sdk.verifier import Allowed

from .django_decorators import (
    CHECKED,
    OTHER_METHOD,
    Check,
    View,
    check_of,
    decision,
    private,
    protected,
    refusal,
    unprotected,
)
from .requirement import OPEN, requires

__all__ = [
    "AgentAuthMiddleware",
    "Checks",
    "ProtectedMiddleware",
    "decision",
    "protected",
    "requires",
    "unprotected",
]

# On the request: the method, view and arguments that AgentAuthMiddleware checked.
_FOUND: Final = "agentauth_found"
Found = tuple[View | None, tuple[Any, ...], dict[str, Any]]
# In AGENTAUTH: what may stand before AgentAuthMiddleware.
_BEFORE: Final = "UNCHECKED_MIDDLEWARE"
# It answers only with a redirect to https, and Django's own checks want it near the top.
_HARMLESS: Final = "django.middleware.security.SecurityMiddleware"
_CACHED: Final = (
    "A cache middleware answers before token and proof are checked: take it out of MIDDLEWARE"
    " and put cache_page on single views instead (agentauth_sdk.E001)."
)
# A view without `protected` is checked without an act, and handles repeated operations itself.
_WITHOUT_ACT: Final = Check(None, handles_repeats=True)


class ProtectedMiddleware:
    """Checks views with `protected` before the decorators around them.

    Other views are open, and so is what another middleware answers itself.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        # Checked here too, since servers do not run the system checks.
        if errors := self._mistakes():
            raise ImproperlyConfigured(f"{errors[0].msg} {errors[0].hint}")
        self.get_response = get_response

    def _mistakes(self) -> list[CheckMessage]:
        return cache_errors(None)

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        response = self.get_response(request)
        allowed = getattr(request, "agentauth", None)
        if not isinstance(allowed, Allowed):
            return response
        # Set only here: a cache around the view would give this agent's nonce to others.
        if allowed.nonce is not None:
            response["DPoP-Nonce"] = allowed.nonce
        # Covers Django's answer to an exception of the view, and answers of decorators too.
        return private(response)

    def process_view(
        self, request: HttpRequest, view: View, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> HttpResponse | None:
        """Django's hook between URL and view."""
        _check_not_cached(request)
        return self._before(request, view, args, kwargs)

    def _before(
        self, request: HttpRequest, view: View, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> HttpResponse | None:
        setattr(request, CHECKED, None)
        check = check_of(view, request)
        return None if check is None else _refusal_of(check, request, args, kwargs)


class AgentAuthMiddleware(ProtectedMiddleware):
    """Every request requires an agent unless its view says otherwise: a forgotten decorator opens
    nothing.

    A view with `protected` is checked for its own act, one with `unprotected` is open. Every other
    is checked without an act (token, proof, windows and presence), and so is a path without a view.

    The check is made before any middleware that follows, which may answer itself: a static file, a
    404 page. So nothing that follows may lead the request to another view.
    """

    def _mistakes(self) -> list[CheckMessage]:
        return [*cache_errors(None), *order_errors(None)]

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        _check_not_cached(request)
        view, args, kwargs = found = _found(request)
        setattr(request, _FOUND, (request.method, *found))
        if not getattr(view, OPEN, False):
            check = None if view is None else check_of(view, request)
            refused = _refusal_of(check or _WITHOUT_ACT, request, args, kwargs)
            if refused is not None:
                return refused
        return super().__call__(request)

    def _before(
        self, request: HttpRequest, view: View, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> HttpResponse | None:
        method, *found = getattr(request, _FOUND, (None,))
        if method != request.method:
            raise ImproperlyConfigured(
                f"{OTHER_METHOD} AgentAuthMiddleware and into AGENTAUTH[{_BEFORE!r}]."
            )
        if found != [view, args, kwargs]:
            raise ImproperlyConfigured(
                "After the check, a middleware led the request to another view or to other"
                f" arguments. Put it before AgentAuthMiddleware and into AGENTAUTH[{_BEFORE!r}]."
            )
        if not hasattr(request, CHECKED):
            # An open view, which may still check for itself.
            setattr(request, CHECKED, None)
        return None


def _check_not_cached(request: HttpRequest) -> None:
    if hasattr(request, "_cache_update_cache"):
        # A cache middleware that `cache_errors` does not recognise has already looked for an
        # answer.
        raise ImproperlyConfigured(_CACHED)


def _found(request: HttpRequest) -> Found:
    """The view that Django will choose for the path, with its arguments; None if there is none."""
    try:
        match = get_resolver(getattr(request, "urlconf", None)).resolve(request.path_info)
    except Resolver404:
        return None, (), {}
    return match.func, match.args, match.kwargs


def _refusal_of(
    check: Check, request: HttpRequest, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> HttpResponse | None:
    """Ask verify, and keep the decision on the request. None if it is a yes."""
    setattr(request, CHECKED, None)
    try:
        request.agentauth = check(request, *args, **kwargs)  # type: ignore[attr-defined]  # our own attribute
    except AgentAuthError as error:
        return refusal(error)
    # A copy: middleware that runs later may change the arguments.
    setattr(request, CHECKED, (check, args, dict(kwargs), request.method))
    return None


class Checks(AppConfig):
    """For INSTALLED_APPS: importing this module registers the system check."""

    name = "agentauth.integrations.django"
    label = "agentauth_sdk"


@register
def cache_errors(app_configs: object, **_kwargs: object) -> list[CheckMessage]:
    """agentauth_sdk.E001: Django's site cache answers by URL and headers, before any view or
    process_view.
    """
    caches = (UpdateCacheMiddleware, FetchFromCacheMiddleware)
    made = {path: import_string(path) for path in settings.MIDDLEWARE}
    return [
        Error(_CACHED, hint=f"Remove {path} from MIDDLEWARE.", id="agentauth_sdk.E001")
        for path, each in made.items()
        if isinstance(each, type) and issubclass(each, caches)
    ]


@register
def order_errors(app_configs: object, **_kwargs: object) -> list[CheckMessage]:
    """agentauth_sdk.E002: a middleware before AgentAuthMiddleware can answer without the check."""
    before: list[str] = []
    for path in settings.MIDDLEWARE:
        made = import_string(path)
        if isinstance(made, type) and issubclass(made, AgentAuthMiddleware):
            known = getattr(settings, "AGENTAUTH", {}).get(_BEFORE, ())
            return [
                Error(
                    f"{each} stands before AgentAuthMiddleware in MIDDLEWARE, so it could answer"
                    " before token and proof are checked.",
                    hint="Move it after AgentAuthMiddleware. If none of its answers needs a check,"
                    f" add it to AGENTAUTH[{_BEFORE!r}].",
                    id="agentauth_sdk.E002",
                )
                for each in before
                if each != _HARMLESS and each not in known
            ]
        before.append(path)
    return []
