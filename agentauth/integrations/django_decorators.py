"""What protects a Django view: its decorators, the check they attach to it, and its answers.

`django.py` has the middleware that makes the check, and the settings.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from agentauth.protocol.capability import Action
from agentauth.protocol.errors import AgentAuthError
from agentauth.sdk.verifier import Allowed, VerifierClient

from . import refusals_and_caching
from .incoming_request import (
    Incoming,
    asgi_headers,
    asgi_target,
    bounded,
    check_length,
    check_mount,
    encoded_path,
    question,
    received_target,
    too_long,
    wsgi_headers,
)
from .requirement import GUARDED, OPEN, Requirement

try:
    from asgiref.sync import sync_to_async
    from django.conf import settings
    from django.core.exceptions import ImproperlyConfigured, RequestDataTooBig
    from django.http import HttpRequest, HttpResponse
    from django.http.response import HttpResponseBase
    from django.views.decorators.csrf import csrf_exempt
except ModuleNotFoundError as error:
    raise ImportError("To protect views, install agentauth-sdk[django].") from error

View = Callable[..., Any]
ActionOf = Callable[..., Action]

# On the request: the check that the middleware made and its arguments; None if it made none.
CHECKED: Final = "agentauth_checked"
_UNSEEN: Final = object()
OTHER_METHOD: Final = "After the check, a middleware changed the request's method. Put it before"


@dataclass(frozen=True, slots=True, eq=False)
class Check:
    """What one use of `protected` says about its views; action is None if a view names no act."""

    action: Action | ActionOf | Requirement | None
    handles_repeats: bool

    def __call__(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Allowed:
        """Ask verify. Raises AgentAuthError for everything but a yes to exactly this request."""
        if getattr(request, "scope", None) is None:
            check_mount(request.META, (settings.FORCE_SCRIPT_NAME or "").rstrip("/"))
        incoming = _incoming(request, kwargs)
        asked = question(incoming, _setting("AUDIENCE"))
        act = self.action
        if isinstance(act, Requirement):
            act = act.action(incoming)
        elif callable(act):
            act = act(request, *args, **kwargs)
        client = _client(_setting("REGISTRY_URL"), _setting("CLIENT_ID"), _setting("CLIENT_SECRET"))
        allowed = client.verify(**asked, action=act)
        return refusals_and_caching.once(allowed, handles_repeats=self.handles_repeats)


def protected(
    action: Action | ActionOf | Requirement, *, handles_repeats: bool = False
) -> Callable[[View], View]:
    """Let a request reach the view only if verify allows `action`; otherwise answer with the
    refusal.

    `action` is what `requires` made, the act itself, or a function of the view's arguments that
    derives it from URL and body and may raise InvalidRequestError. The view, which may be a
    coroutine function, gets the decision by `decision(request)`.

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
    repeats = isinstance(action, Requirement) and action.handles_repeats
    check = Check(action, handles_repeats or repeats)

    def decorate(view: View) -> View:
        if isinstance(action, Requirement):
            action.check_function(view)

        @functools.wraps(view)
        def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
            try:
                allowed = _checked(request, check, args, kwargs)
                allowed = check(request, *args, **kwargs) if allowed is None else allowed
            except AgentAuthError as error:
                return refusal(error)
            request.agentauth = allowed  # type: ignore[attr-defined]  # our own attribute
            response = view(request, *args, **kwargs)
            # A class with asynchronous methods.
            return _awaited(response) if inspect.isawaitable(response) else private(response)

        @functools.wraps(view)
        async def guarded_coroutine(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
            try:
                allowed = _checked(request, check, args, kwargs)
                if allowed is None:
                    # A blocking call, which would stall the event loop.
                    allowed = await sync_to_async(check)(request, *args, **kwargs)
            except AgentAuthError as error:
                return refusal(error)
            request.agentauth = allowed  # type: ignore[attr-defined]  # our own attribute
            return private(await view(request, *args, **kwargs))

        made: View = guarded_coroutine if inspect.iscoroutinefunction(view) else guarded
        # functools.wraps copies this attribute, so the middleware finds it on the outermost
        # decorator.
        setattr(made, GUARDED, check)
        # Authentication uses no cookie, so another site cannot exploit one.
        return csrf_exempt(made)

    return decorate


def unprotected(view: View) -> View:
    """Mark a view as open to every caller.

    The middleware skips it; a check inside the view still applies.
    """

    @functools.wraps(view)
    def marked(*args: Any, **kwargs: Any) -> Any:
        return view(*args, **kwargs)

    @functools.wraps(view)
    async def marked_coroutine(*args: Any, **kwargs: Any) -> Any:
        return await view(*args, **kwargs)

    made: View = marked_coroutine if inspect.iscoroutinefunction(view) else marked
    setattr(made, OPEN, True)
    return made


def decision(request: HttpRequest) -> Allowed:
    """The answer of verify. Raises ImproperlyConfigured in a view that is not protected."""
    allowed = getattr(request, "agentauth", None)
    if not isinstance(allowed, Allowed):
        raise ImproperlyConfigured("This view is not protected by agentauth.integrations.django.")
    return allowed


def required_act(
    kind: type, actions: Mapping[str, str] | None, method: str, given: object = None
) -> Requirement | None:
    """What the attribute `requirement` of a class-based view of REST framework says of a method;
    None if there is no such attribute, or the class does not answer this method.

    It is one Requirement, or a mapping from the name of a method, or of an action of a viewset, to
    one. `actions`: method in lower case → name of the action. Raises ImproperlyConfigured for a
    method that the class answers and the mapping leaves out.
    """
    declared = getattr(kind, "requirement", None) if given is None else given
    if declared is None or isinstance(declared, Requirement):
        return declared
    if not isinstance(declared, Mapping):
        raise ImproperlyConfigured(f"`requirement` of {kind.__name__} must be requires(…).")
    name = method.lower()
    if name == "head" and name not in {each.lower() for each in declared}:
        name = "get"
    handler = (actions or {}).get(name, name)
    found: Requirement | None = declared.get(handler, declared.get(name.upper()))
    if found is None and name != "options" and hasattr(kind, handler):
        raise ImproperlyConfigured(
            f"`requirement` of {kind.__name__} does not say what {handler!r} needs."
        )
    return found


def checked_act(request: Any, arguments: Mapping[str, object]) -> object:
    """The requirement that the middleware checked for a view with these arguments by name; None if
    it checked none.
    """
    checked: Any = getattr(request, CHECKED, None)
    return None if checked is None or checked[2] != arguments else checked[0].action


def _declared(view: View, request: HttpRequest) -> Requirement | None:
    kind = getattr(view, "cls", None)
    if kind is None or getattr(view, OPEN, False):
        return None
    # `as_view(requirement=…)` and `@action(requirement=…)` set it on the instance.
    given = getattr(view, "initkwargs", {}).get("requirement")
    return required_act(kind, getattr(view, "actions", None), str(request.method), given)


def check_of(view: View, request: HttpRequest) -> Check | None:
    """What `protected`, or the attribute `requirement` of its class, says about a view."""
    found: Check | None = getattr(view, GUARDED, None)
    if found is None and (act := _declared(view, request)) is not None:
        return Check(act, act.handles_repeats)
    return found


def refusal(error: AgentAuthError) -> HttpResponse:
    """The answer to the agent.

    A fault on our side is logged with its cause, which the agent does not see.
    """
    answer = refusals_and_caching.refusal(error)
    return HttpResponse(answer.body, status=answer.status, headers=dict(answer.headers))


def _incoming(request: HttpRequest, parameters: dict[str, Any]) -> Incoming:
    """The request as the check reads it: before Django decodes its path or joins its headers."""
    scope = getattr(request, "scope", None)
    if scope is None:
        # Django decodes the path in the environment itself.
        received = received_target(request.META)
        query = request.META.get("QUERY_STRING", "")
        target = received or encoded_path(request.path) + (f"?{query}" if query else "")
        headers = wsgi_headers(request.META)
    else:
        target, headers = asgi_target(scope), asgi_headers(scope)
    incoming = Incoming(
        str(request.method), target, headers, parameters, lambda: _body(request, incoming), request
    )
    return incoming


def _body(request: HttpRequest, incoming: Incoming) -> bytes:
    check_length(incoming.lines("Content-Length"))
    try:
        return bounded(request.body)
    except RequestDataTooBig:
        # A chunked body, which announces no length.
        raise too_long() from None


def _checked(
    request: HttpRequest, check: Check, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Allowed | None:
    """The middleware's decision on this call of the view; None if it made none."""
    checked: Any = getattr(request, CHECKED, _UNSEEN)
    if checked is _UNSEEN:
        raise ImproperlyConfigured(
            "Put AgentAuthMiddleware or ProtectedMiddleware of agentauth.integrations.django into"
            " MIDDLEWARE."
        )
    # A second call needs a decision of its own: the proof is spent, so verify will refuse it.
    setattr(request, CHECKED, None)
    if checked is None or checked[0] is not check:
        return None
    if checked[3] != request.method:
        raise ImproperlyConfigured(f"{OTHER_METHOD} ProtectedMiddleware.")
    if checked[1:3] != (args, kwargs):
        # The act was derived from the URL's arguments; for other arguments nothing is allowed.
        raise ImproperlyConfigured(
            "Move the decorator that changes the view's arguments inside `protected`."
        )
    return decision(request)


async def _awaited(response: Any) -> HttpResponseBase:
    return private(await response)


def private(response: HttpResponseBase) -> HttpResponseBase:
    """Keep the answer out of caches, which would skip the check, unless the view says otherwise."""
    response["Cache-Control"] = refusals_and_caching.kept_private(response.get("Cache-Control", ""))
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
