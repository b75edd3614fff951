"""Protect a Flask application: verify is asked before any view and any other `before_request`
function runs. URL converters and `url_value_preprocessor` functions run earlier, for every caller.

    app = Flask(__name__)
    protect(app, Provider.from_environment())

    @app.get("/calendar/<name>")
    @protected(requires("read", "calendar/{name}"))
    def events(name):
        return {"for": decision().subject}

Every view asks for an agent unless it has `unprotected`: a forgotten decorator opens nothing.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

try:
    from flask import Flask, Request, Response, g, request
except ModuleNotFoundError as error:
    raise ImportError(
        "agentauth.integrations.flask needs Flask: install agentauth-sdk[flask]."
    ) from error

from agentauth.protocol.encoding import MAX_BODY_BYTES
from agentauth.protocol.errors import AgentAuthError
from agentauth.sdk.verifier import Allowed, VerifierClient

from . import refusals_and_caching
from .incoming_request import (
    Incoming,
    bounded,
    check_length,
    check_mount,
    question,
    wsgi_headers,
    wsgi_target,
)
from .provider_settings import Provider
from .requirement import GUARDED, OPEN, ConfigurationError, Requirement, requirement_of, requires

__all__ = [
    "ConfigurationError",
    "Provider",
    "decision",
    "protect",
    "protected",
    "requires",
    "unprotected",
]

View = Callable[..., Any]


@dataclass(slots=True)
class _Checked:
    """The decision on one request. It allows its view to run once."""

    allowed: Allowed
    requirement: Requirement | None
    parameters: Mapping[str, object]
    used: bool = False


def protect(app: Flask, provider: Provider, *, verifier: VerifierClient | None = None) -> None:
    """Close every view of `app`, and its static files: each asks for an agent unless it has
    `unprotected`.

    The check runs before every other `before_request` function. Raises ConfigurationError if `app`
    already serves requests.
    """
    if app._got_first_request:  # noqa: SLF001 — Flask has no public name for it
        raise ConfigurationError("Call protect(app, …) before the application serves requests.")
    client = verifier or provider.verifier()

    def before() -> Response | None:
        return _check(app, provider.audience, client)

    app.before_request_funcs.setdefault(None, []).insert(0, before)
    # The first in the list runs last, so that no other function changes the headers.
    app.after_request_funcs.setdefault(None, []).insert(0, _private)


def protected(requirement: Requirement) -> Callable[[View], View]:
    """Let a request reach the view only if verify allows what it requires.

    The view may be a coroutine function. Put this decorator inside `app.route`, next to the
    function. Raises ConfigurationError for a placeholder that is no argument of the view.
    """
    if not isinstance(requirement, Requirement):
        raise ConfigurationError('Write @protected(requires("read", "calendar/{name}")).')

    def decorate(view: View) -> View:
        if inspect.isclass(view) or not callable(view):
            raise ConfigurationError("`protected` is for functions and for methods of a class.")
        requirement.check_function(view)

        @functools.wraps(view)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            _use(requirement, kwargs)
            return view(*args, **kwargs)

        @functools.wraps(view)
        async def guarded_coroutine(*args: Any, **kwargs: Any) -> Any:
            _use(requirement, kwargs)
            return await view(*args, **kwargs)

        wrapper = guarded_coroutine if inspect.iscoroutinefunction(view) else guarded
        setattr(wrapper, GUARDED, requirement)
        return wrapper

    return decorate


def unprotected(view: View) -> View:
    """Mark a view as open to every caller."""

    @functools.wraps(view)
    def marked(*args: Any, **kwargs: Any) -> Any:
        return view(*args, **kwargs)

    @functools.wraps(view)
    async def marked_coroutine(*args: Any, **kwargs: Any) -> Any:
        return await view(*args, **kwargs)

    wrapper: View = marked_coroutine if inspect.iscoroutinefunction(view) else marked
    setattr(wrapper, OPEN, True)
    return wrapper


def decision() -> Allowed:
    """The answer of verify to the current request. Raises ConfigurationError in an open view."""
    checked = g.get("agentauth")
    if not isinstance(checked, _Checked):
        raise ConfigurationError(
            "This request was not checked: its view is `unprotected`, or protect(app, …) was not"
            " called."
        )
    return checked.allowed


def _check(app: Flask, audience: str, client: VerifierClient) -> Response | None:
    """The refusal; None if the view may run."""
    # An application context that is open around several requests keeps `g`.
    g.pop("agentauth", None)
    view = app.view_functions.get(request.endpoint) if request.endpoint else None
    handler = _handler(view)
    if getattr(view, OPEN, False) or getattr(handler, OPEN, False):
        return None
    needed, parameters = requirement_of(handler), dict(request.view_args or {})
    # The object itself, not the proxy to the current one.
    current: Request = request._get_current_object()  # type: ignore[attr-defined]  # noqa: SLF001 — documented by Werkzeug
    incoming = Incoming(
        current.method,
        wsgi_target(current.environ),
        wsgi_headers(current.environ),
        parameters,
        lambda: _body(current, incoming),
        current,
    )
    try:
        check_mount(current.environ, app.config["APPLICATION_ROOT"].rstrip("/"))
        asked = question(incoming, audience)
        act = None if needed is None else needed.action(incoming)
        allowed = client.verify(**asked, action=act)
        # A view without a requirement handles repeated operations itself.
        refusals_and_caching.once(allowed, handles_repeats=needed is None or needed.handles_repeats)
    except AgentAuthError as error:
        answer = refusals_and_caching.refusal(error)
        return Response(answer.body, answer.status, dict(answer.headers))
    g.agentauth = _Checked(allowed, needed, parameters)
    return None


def _handler(view: View | None) -> View | None:
    """The function that answers the request: for a class-based view, its method."""
    kind = getattr(view, "view_class", None)
    if kind is None or requirement_of(view) is not None:
        return view
    names = ("head", "get") if request.method == "HEAD" else (request.method.lower(),)
    return next((getattr(kind, name) for name in names if hasattr(kind, name)), view)


def _body(current: Request, incoming: Incoming) -> bytes:
    check_length(incoming.lines("Content-Length"))
    # Werkzeug cuts a chunked body at the limit without an error. One byte more than we accept, so
    # that `bounded` notices. A lower limit of the application stays, or its view would get more.
    limit = current.max_content_length
    if limit is None or limit > MAX_BODY_BYTES:
        current.max_content_length = MAX_BODY_BYTES + 1
    return bounded(current.get_data())


def _use(requirement: Requirement, arguments: Mapping[str, object]) -> None:
    checked = g.get("agentauth")
    if not isinstance(checked, _Checked) or checked.requirement is not requirement:
        raise ConfigurationError(
            "The request was not checked for this view: call protect(app, …), and put `protected`"
            " next to the function."
        )
    if checked.used:
        raise ConfigurationError("The view may run once: another run needs its own decision.")
    if checked.parameters != arguments:
        raise ConfigurationError(
            "Move the decorator that changes the view's arguments inside `protected`."
        )
    checked.used = True


def _private(response: Response) -> Response:
    """Keep a protected answer out of caches; pass on the nonce for the next proof."""
    checked = g.get("agentauth")
    if isinstance(checked, _Checked):
        stated = ", ".join(response.headers.getlist("Cache-Control"))
        response.headers["Cache-Control"] = refusals_and_caching.kept_private(stated)
        if checked.allowed.nonce is not None:
            response.headers["DPoP-Nonce"] = checked.allowed.nonce
    return response
