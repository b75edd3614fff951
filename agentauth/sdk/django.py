"""Protects Django views with the verifier: a decorator that names the act, a middleware that lets nothing slip through.

The only file of the SDK that imports Django. Settings of the service provider's project:

    AGENTAUTH = {
        "REGISTRY_URL": "https://registry.example.com",
        "CLIENT_ID": "…", "CLIENT_SECRET": "…",
        "AUDIENCE": "https://api.example.com/v1",
    }
"""

import functools
import inspect
import logging
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import quote, urlsplit

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.views.decorators.csrf import csrf_exempt

from agentauth.protocol.capability import Action
from agentauth.protocol.dpop import authorization_header, single_header
from agentauth.protocol.errors import AgentAuthError, InvalidRequestError

from .errors import AlreadyProcessedError
from .refusals import answer_for
from .verifier import Allowed, VerifierClient

logger = logging.getLogger(__name__)

View = Callable[..., HttpResponseBase]
ActionOf = Callable[..., Action]

_GUARDED: Final = "agentauth_guarded"
_OPEN: Final = "agentauth_open"
_MAX_IDEMPOTENCY_KEY: Final = 128
_UNAVAILABLE: Final = 503


def protected(action: Action | ActionOf, *, handles_repeats: bool = False) -> Callable[[View], View]:
    """Let a request through to the view only if verify allows `action`; else answer the refusal.

    `action` is the act itself, or a function of the view's arguments that says what it is from URL and body; it may
    raise InvalidRequestError. The view finds the decision by `decision(request)`. An operation that was allowed
    before under the same Idempotency-Key is answered 409 `already_processed`, unless the view says with
    `handles_repeats` that it looks at `decision(request).repeated` and does not act again. That it was allowed is not that
    it was carried out: whoever asked may have died before, or have given up on an answer (UnknownOutcomeError). Only a
    view that keeps what it did by that key can tell, and may then do what is missing.
    """

    def decorate(view: View) -> View:
        if inspect.iscoroutinefunction(view):
            # Verify is asked over a blocking call, which would hold up the whole event loop.
            raise ImproperlyConfigured("agentauth.sdk.django protects synchronous views only.")

        @functools.wraps(view)
        def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
            try:
                token, proof = _credentials(request)
                act = action if isinstance(action, Action) else action(request, *args, **kwargs)
                allowed = _verify(request, token, proof, act)
                if allowed.repeated and not handles_repeats:
                    raise AlreadyProcessedError("This operation was allowed before.")
            except AgentAuthError as error:
                return refusal(error)
            request.agentauth = allowed  # type: ignore[attr-defined]  # our own attribute
            return _with_nonce(view(request, *args, **kwargs), allowed)

        setattr(guarded, _GUARDED, True)
        # Nothing here rests on a cookie, so no other site can ride on one.
        return csrf_exempt(guarded)

    return decorate


def unprotected(view: View) -> View:
    """Mark a view that anybody may call, for the middleware's eyes."""

    @functools.wraps(view)
    def marked(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        return view(request, *args, **kwargs)

    setattr(marked, _OPEN, True)
    return marked


def decision(request: HttpRequest) -> Allowed:
    """What verify answered for this request. Raises ImproperlyConfigured in a view that is not protected."""
    allowed = getattr(request, "agentauth", None)
    if not isinstance(allowed, Allowed):
        raise ImproperlyConfigured("This view is not protected by agentauth.sdk.django.")
    return allowed


class AgentAuthMiddleware:
    """Every view needs an agent unless it says otherwise: a forgotten decorator must not open a door.

    A view with `protected` checks its own act, one with `unprotected` is open, every other is checked without an
    act: token, proof, windows and presence.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        response = self.get_response(request)
        allowed = getattr(request, "agentauth", None)
        return _with_nonce(response, allowed) if isinstance(allowed, Allowed) else response

    def process_view(
        self, request: HttpRequest, view: View, _args: tuple[Any, ...], _kwargs: dict[str, Any]
    ) -> HttpResponse | None:
        """Django's hook between URL and view."""
        if getattr(view, _GUARDED, False) or getattr(view, _OPEN, False):
            return None
        try:
            token, proof = _credentials(request)
            request.agentauth = _verify(request, token, proof, None)  # type: ignore[attr-defined]  # our own attribute
        except AgentAuthError as error:
            return refusal(error)
        return None


def refusal(error: AgentAuthError) -> HttpResponse:
    """The answer to the agent. A fault of ours is logged with its cause; the agent learns only that it is ours."""
    answer = answer_for(error)
    if answer.status == _UNAVAILABLE:
        logger.error("a request could not be checked: %s", error)
    return HttpResponse(answer.body, status=answer.status, headers=dict(answer.headers))


def request_url(request: HttpRequest) -> str:
    """The address of the request as the agent signed it: the configured audience's origin and the path as received.

    Never from the Host header, which the caller chooses. Raises InvalidRequestError for a target that is no path.
    """
    origin = urlsplit(_setting("AUDIENCE"))
    return f"{origin.scheme}://{origin.netloc}{_raw_path(request)}"


def _raw_path(request: HttpRequest) -> str:
    """The path before decoding: Django turns `%2F` into `/`, and then two URLs would be one.

    Servers hand it over as RAW_URI (gunicorn), REQUEST_URI (mod_wsgi, uWSGI) or raw_path (ASGI). No client header
    can set these names. Where none is there, the path is encoded again: a signed `%2F` is then refused, not confused.
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
    """Token and proof, each from exactly one header line. Django joins repeated lines with a comma."""
    token = authorization_header(_lines(request, "HTTP_AUTHORIZATION"))
    return token, single_header(_lines(request, "HTTP_DPOP"))


def _lines(request: HttpRequest, name: str) -> list[str]:
    value = request.META.get(name)
    return [] if value is None else [str(value)]


def _verify(request: HttpRequest, token: str, proof: str, action: Action | None) -> Allowed:
    return _client(_setting("REGISTRY_URL"), _setting("CLIENT_ID"), _setting("CLIENT_SECRET")).verify(
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
    # A comma is two header lines that Django joined: which of them names the operation?
    if not 1 <= len(value) <= _MAX_IDEMPOTENCY_KEY or "," in value or not value.isascii():
        raise InvalidRequestError("Idempotency-Key must be one header of 1 to 128 plain characters.")
    return str(value)


def _with_nonce(response: HttpResponseBase, allowed: Allowed) -> HttpResponseBase:
    if allowed.nonce is not None:
        response["DPoP-Nonce"] = allowed.nonce
    return response


def _setting(name: str) -> str:
    configured = getattr(settings, "AGENTAUTH", {})
    value = configured.get(name) if isinstance(configured, dict) else None
    if not isinstance(value, str) or not value:
        raise ImproperlyConfigured(f"Set AGENTAUTH[{name!r}] in the settings.")
    return value


@functools.cache
def _client(registry_url: str, client_id: str, client_secret: str) -> VerifierClient:
    """One client, and with it one pool of connections, for each process and configuration."""
    return VerifierClient(registry_url, client_id, client_secret)
