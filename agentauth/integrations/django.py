"""Protect Django views: a decorator names the act, a middleware asks verify before the view runs.

Settings of the service provider's project:

    AGENTAUTH = {
        "REGISTRY_URL": "https://registry.example.com",
        "CLIENT_ID": "…", "CLIENT_SECRET": "…",
        "AUDIENCE": "https://api.example.com/v1",
    }
    # Put one of the two first: AgentAuthMiddleware checks every view, ProtectedMiddleware only
    # views with `protected`.
    MIDDLEWARE = ["agentauth.integrations.django.AgentAuthMiddleware", …]
    INSTALLED_APPS = ["agentauth.integrations.django.Checks", …]  # for `manage.py check`
"""

import functools
import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, urlsplit

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, register
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.middleware.cache import FetchFromCacheMiddleware, UpdateCacheMiddleware
from django.utils.cache import patch_cache_control
from django.utils.module_loading import import_string
from django.views.decorators.csrf import csrf_exempt

from agentauth.protocol.capability import Action
from agentauth.protocol.dpop import authorization_header, single_header
from agentauth.protocol.errors import AgentAuthError, InvalidRequestError
from agentauth.sdk.errors import AlreadyProcessedError
from agentauth.sdk.refusals import answer_for
from agentauth.sdk.verifier import Allowed, VerifierClient

logger = logging.getLogger(__name__)

View = Callable[..., HttpResponseBase]
ActionOf = Callable[..., Action]

_GUARDED: Final = "agentauth_guarded"
_OPEN: Final = "agentauth_open"
# On the request: the check that the middleware made and its arguments; None if it made none.
_CHECKED: Final = "agentauth_checked"
_UNSEEN: Final = object()
_MAX_IDEMPOTENCY_KEY: Final = 128
_UNAVAILABLE: Final = 503
_CACHED: Final = (
    "A cache middleware answers before token and proof are checked: take it out of MIDDLEWARE"
    " and put cache_page on single views instead (agentauth_sdk.E001)."
)


@dataclass(frozen=True, slots=True, eq=False)
class _Check:
    """What one use of `protected` says about its views; action is None if a view names no act."""

    action: Action | ActionOf | None
    handles_repeats: bool

    def __call__(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Allowed:
        """Ask verify. Raises AgentAuthError for everything but a yes to exactly this request."""
        token, proof = _credentials(request)
        act = self.action(request, *args, **kwargs) if callable(self.action) else self.action
        allowed = _verify(request, token, proof, act)
        if allowed.repeated and not self.handles_repeats:
            raise AlreadyProcessedError("This operation was allowed before.")
        return allowed


# A view without `protected` is checked without an act, and handles repeated operations itself.
_WITHOUT_ACT: Final = _Check(None, handles_repeats=True)


def protected(
    action: Action | ActionOf, *, handles_repeats: bool = False
) -> Callable[[View], View]:
    """Let a request reach the view only if verify allows `action`; otherwise answer with the
    refusal.

    `action` is the act itself, or a function of the view's arguments that derives it from URL and
    body and may raise InvalidRequestError. The view gets the decision by `decision(request)`.

    An operation that was allowed before under the same Idempotency-Key is answered 409
    `already_processed`, unless the view says with `handles_repeats` that it checks
    `decision(request).repeated` and does not act again. Allowed does not mean carried out: the
    process that asked may have died first, or given up on an answer (UnknownOutcomeError). Only a
    view that records what it did under that key can tell, and may then do what is missing.

    The middleware checks before any decorator around the view runs, so that none (`cache_page`,
    `condition`) answers without a check. Answers get `Cache-Control: private, no-store`, or the
    view's own header with `private` added; `public` stays. Without the middleware the view raises
    ImproperlyConfigured.
    """
    check = _Check(action, handles_repeats)

    def decorate(view: View) -> View:
        if inspect.iscoroutinefunction(view):
            # Verify is a blocking call, which would stall the whole event loop.
            raise ImproperlyConfigured(
                "agentauth.integrations.django protects synchronous views only."
            )

        @functools.wraps(view)
        def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
            try:
                allowed = _checked(request, check, args, kwargs)
            except AgentAuthError as error:
                return refusal(error)
            request.agentauth = allowed  # type: ignore[attr-defined]  # our own attribute
            return _kept_from_caches(view(request, *args, **kwargs))

        # functools.wraps copies this attribute, so the middleware finds it on the outermost
        # decorator.
        setattr(guarded, _GUARDED, check)
        # Authentication uses no cookie, so another site cannot exploit one.
        return csrf_exempt(guarded)

    return decorate


def unprotected(view: View) -> View:
    """Mark a view as open to every caller.

    The middleware skips it; a check inside the view still applies.
    """

    @functools.wraps(view)
    def marked(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        return view(request, *args, **kwargs)

    setattr(marked, _OPEN, True)
    return marked


def decision(request: HttpRequest) -> Allowed:
    """The answer of verify. Raises ImproperlyConfigured in a view that is not protected."""
    allowed = getattr(request, "agentauth", None)
    if not isinstance(allowed, Allowed):
        raise ImproperlyConfigured("This view is not protected by agentauth.integrations.django.")
    return allowed


class ProtectedMiddleware:
    """Checks views with `protected` before the decorators around them; other views are open."""

    denies_by_default = False

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        # Checked here too, since servers do not run the system checks.
        if errors := cache_errors(None):
            raise ImproperlyConfigured(f"{errors[0].msg} {errors[0].hint}")
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        response = self.get_response(request)
        allowed = getattr(request, "agentauth", None)
        if not isinstance(allowed, Allowed):
            return response
        # Set only here: a cache around the view would give this agent's nonce to others.
        if allowed.nonce is not None:
            response["DPoP-Nonce"] = allowed.nonce
        # Covers Django's answer to an exception of the view, and answers of decorators too.
        return _kept_from_caches(response)

    def process_view(
        self, request: HttpRequest, view: View, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> HttpResponse | None:
        """Django's hook between URL and view."""
        if hasattr(request, "_cache_update_cache"):
            # A cache middleware that `cache_errors` does not recognise has already looked for an
            # answer.
            raise ImproperlyConfigured(_CACHED)
        setattr(request, _CHECKED, None)
        check = getattr(view, _GUARDED, None)
        if check is None:
            if getattr(view, _OPEN, False) or not self.denies_by_default:
                return None
            check = _WITHOUT_ACT
        try:
            request.agentauth = check(request, *args, **kwargs)  # type: ignore[attr-defined]  # our own attribute
        except AgentAuthError as error:
            return refusal(error)
        setattr(request, _CHECKED, (check, args, kwargs))
        return None


class AgentAuthMiddleware(ProtectedMiddleware):
    """Every view requires an agent unless it says otherwise: a forgotten decorator opens nothing.

    A view with `protected` is checked for its own act, one with `unprotected` is open, every other
    is checked without an act: token, proof, windows and presence.
    """

    denies_by_default = True


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


def refusal(error: AgentAuthError) -> HttpResponse:
    """The answer to the agent.

    A fault on our side is logged with its cause, which the agent does not see.
    """
    answer = answer_for(error)
    if answer.status == _UNAVAILABLE:
        logger.error("a request could not be checked: %s", error)
    return HttpResponse(answer.body, status=answer.status, headers=dict(answer.headers))


def request_url(request: HttpRequest) -> str:
    """The request's URL as the agent signed it: origin of the configured audience, path as
    received.

    Never from the Host header, which the caller chooses: a proof made for another host would pass.
    Raises InvalidRequestError for a target that is no path.
    """
    origin = urlsplit(_setting("AUDIENCE"))
    return f"{origin.scheme}://{origin.netloc}{_raw_path(request)}"


def _raw_path(request: HttpRequest) -> str:
    """The path before decoding: Django decodes `%2F` to `/`, so two URLs would look like one.

    Servers pass it as RAW_URI (gunicorn), REQUEST_URI (mod_wsgi, uWSGI) or raw_path (ASGI). No
    client header can set these names. Without them the decoded path is encoded again: a signed
    `%2F` is then refused, not confused with `/`.
    """
    environ = getattr(request, "environ", {})
    scope = getattr(request, "scope", {})
    raw = environ.get("RAW_URI") or environ.get("REQUEST_URI") or scope.get("raw_path")
    if isinstance(raw, bytes):
        raw = raw.decode("latin-1")
    path = str(raw or quote(request.path, safe="/~:@!$&'()*+,;=")).split("#", 1)[0].split("?", 1)[0]
    if not path.startswith("/"):
        raise InvalidRequestError("The request's target must be a path.")
    return path


def _credentials(request: HttpRequest) -> tuple[str, str]:
    """Token and proof, each from exactly one header line. Django joins repeated ones by a comma."""
    token = authorization_header(_lines(request, "HTTP_AUTHORIZATION"))
    return token, single_header(_lines(request, "HTTP_DPOP"))


def _lines(request: HttpRequest, name: str) -> list[str]:
    value = request.META.get(name)
    return [] if value is None else [str(value)]


def _verify(request: HttpRequest, token: str, proof: str, action: Action | None) -> Allowed:
    return _client(
        _setting("REGISTRY_URL"), _setting("CLIENT_ID"), _setting("CLIENT_SECRET")
    ).verify(
        token=token,
        proof=proof,
        method=str(request.method),
        url=request_url(request),
        action=action,
        idempotency_key=_idempotency_key(request),
    )


def _idempotency_key(request: HttpRequest) -> str | None:
    value = request.META.get("HTTP_IDEMPOTENCY_KEY")
    if value is None:
        return None
    # A comma means two header lines that Django joined: it is unclear which names the operation.
    if not 1 <= len(value) <= _MAX_IDEMPOTENCY_KEY or "," in value or not value.isascii():
        raise InvalidRequestError(
            "Idempotency-Key must be one header of 1 to 128 plain characters."
        )
    return str(value)


def _checked(
    request: HttpRequest, check: _Check, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Allowed:
    """The middleware's decision on this call of the view; if it made none, verify is asked here.

    Raises AgentAuthError as the check does.
    """
    checked: Any = getattr(request, _CHECKED, _UNSEEN)
    if checked is _UNSEEN:
        raise ImproperlyConfigured(
            "Put AgentAuthMiddleware or ProtectedMiddleware of agentauth.integrations.django into"
            " MIDDLEWARE."
        )
    # A second call needs a decision of its own: the proof is spent, so verify will refuse it.
    setattr(request, _CHECKED, None)
    if checked is None or checked[0] is not check:
        return check(request, *args, **kwargs)
    if checked[1:] != (args, kwargs):
        # The act was derived from the URL's arguments; for other arguments nothing is allowed.
        raise ImproperlyConfigured(
            "Move the decorator that changes the view's arguments inside `protected`."
        )
    return decision(request)


def _kept_from_caches(response: HttpResponseBase) -> HttpResponseBase:
    """Keep the answer out of caches, which would skip the check, unless the view says otherwise."""
    stated = {
        each.partition("=")[0].strip().lower()
        for each in response.get("Cache-Control", "").split(",")
    }
    if stated == {""}:
        response["Cache-Control"] = "private, no-store"
    elif not stated & {"public", "s-maxage"}:
        patch_cache_control(response, private=True)
    return response


def _setting(name: str) -> str:
    configured = getattr(settings, "AGENTAUTH", {})
    value = configured.get(name) if isinstance(configured, dict) else None
    if not isinstance(value, str) or not value:
        raise ImproperlyConfigured(f"Set AGENTAUTH[{name!r}] in the settings.")
    return value


@functools.cache
def _client(registry_url: str, client_id: str, client_secret: str) -> VerifierClient:
    """One client, so one connection pool, per process and configuration."""
    return VerifierClient(registry_url, client_id, client_secret)
