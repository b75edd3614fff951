"""Protect a Starlette application; FastAPI is one too (`agentauth.integrations.fastapi`).

app = Starlette(routes=[Route("/calendar/{id}", events), Mount("/static", static)])
protect(app, Provider.from_environment())

@protected(requires("read", "calendar/{id}"))
async def events(request): …
"""

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

try:
    from starlette.applications import Starlette
    from starlette.requests import HTTPConnection
    from starlette.routing import BaseRoute, Host, Match, Mount
except ModuleNotFoundError as error:
    raise ImportError(
        "agentauth.integrations.starlette needs Starlette: install agentauth-sdk[fastapi]."
    ) from error

from agentauth.sdk.async_verifier import AsyncVerifierClient
from agentauth.sdk.verifier import Allowed

from . import asgi
from .asgi import AgentAuthMiddleware, Checked, Route, Scope
from .provider_settings import Provider
from .requirement import (
    GUARDED,
    OPEN,
    ConfigurationError,
    Requirement,
    parameter_text,
    requirement_of,
    requires,
)

__all__ = [
    "ConfigurationError",
    "Provider",
    "decision",
    "protect",
    "protected",
    "requires",
    "unprotected",
]

Endpoint = Callable[..., Any]
_NOT_CHECKED: Final = (
    "The request was not checked for this endpoint: call protect(app, …), and change no path"
    " between it and the endpoint."
)


def protect(
    app: Starlette, provider: Provider, *, verifier: AsyncVerifierClient | None = None
) -> None:
    """Close every route of `app`: each asks for an agent unless it has `unprotected`.

    The check is made before every middleware, also those that are added later, so that none
    answers without it. Routes may be added later too. Raises ConfigurationError for a requirement
    that names a path parameter its route does not have.
    """
    build = app.build_middleware_stack
    _check_routes(app.routes)

    def build_protected() -> Any:
        _check_routes(app.routes)
        return AgentAuthMiddleware(
            build(), provider, routes=functools.partial(_route, app), verifier=verifier
        )

    if app.middleware_stack is not None:
        raise ConfigurationError("Call protect(app, …) before the application serves requests.")
    app.build_middleware_stack = build_protected  # type: ignore[method-assign]  # the one place outside every middleware


def protected(requirement: Requirement) -> Callable[[Endpoint], Endpoint]:
    """Let a request reach the endpoint only if verify allows what it requires.

    The endpoint is a function, a coroutine function or a method of an HTTPEndpoint. Put this
    decorator inside that of the route, next to the function. Raises ConfigurationError.
    """
    if not isinstance(requirement, Requirement):
        raise ConfigurationError('Write @protected(requires("read", "calendar/{id}")).')

    def decorate(endpoint: Endpoint) -> Endpoint:
        if inspect.isclass(endpoint) or not callable(endpoint):
            raise ConfigurationError("`protected` is for functions and for methods of a class.")

        @functools.wraps(endpoint)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            _use(requirement, args, kwargs)
            return endpoint(*args, **kwargs)

        @functools.wraps(endpoint)
        async def guarded_coroutine(*args: Any, **kwargs: Any) -> Any:
            _use(requirement, args, kwargs)
            return await endpoint(*args, **kwargs)

        made = guarded_coroutine if inspect.iscoroutinefunction(endpoint) else guarded
        setattr(made, GUARDED, requirement)
        return made

    return decorate


def unprotected(endpoint: Any) -> Any:
    """Mark an endpoint, or an application to mount, as open to every caller."""
    if not inspect.isfunction(endpoint):
        setattr(endpoint, OPEN, True)
        return endpoint

    @functools.wraps(endpoint)
    def marked(*args: Any, **kwargs: Any) -> Any:
        return endpoint(*args, **kwargs)

    @functools.wraps(endpoint)
    async def marked_coroutine(*args: Any, **kwargs: Any) -> Any:
        return await endpoint(*args, **kwargs)

    made = marked_coroutine if inspect.iscoroutinefunction(endpoint) else marked
    setattr(made, OPEN, True)
    return made


def decision(request: HTTPConnection) -> Allowed:
    """The answer of verify. Raises ConfigurationError if the route is open."""
    return asgi.decision(request.scope)


def checked_for(requirement: Requirement) -> Checked:
    """The decision of this request, made for `requirement`. Raises ConfigurationError."""
    checked = asgi.current()
    if checked is None or checked.route.requirement is not requirement:
        raise ConfigurationError(_NOT_CHECKED)
    return checked


def _use(requirement: Requirement, args: tuple[Any, ...], arguments: dict[str, Any]) -> None:
    checked = checked_for(requirement)
    if checked.used:
        # A second run needs a decision of its own.
        raise ConfigurationError("One decision is for one run of the endpoint.")
    for name in requirement.placeholders & arguments.keys():
        judged = checked.route.parameters.get(name)
        if parameter_text(name, arguments[name]) != parameter_text(name, judged):
            raise ConfigurationError(_NOT_CHECKED)
    for each in (*args, *arguments.values()):
        if isinstance(each, HTTPConnection) and any(
            each.path_params.get(name) != checked.route.parameters.get(name)
            for name in requirement.placeholders
        ):
            raise ConfigurationError(_NOT_CHECKED)
    checked.used = True


def _route(app: Starlette, scope: Scope) -> Route:
    """The route that Starlette will choose: the first that matches, as its router does."""
    method = scope.get("method", "")
    # Matching may leave notes in the scope.
    return _found(app.routes, dict(scope), method)


def _found(routes: Iterable[BaseRoute], scope: dict[str, Any], method: str) -> Route:
    for route in routes:
        match, more = route.matches(scope)
        if match is Match.FULL:
            return _of(route, {**scope, **more}, method)
    # None, or one for other methods: the application answers 404 or 405, or a middleware answers.
    return Route()


def _of(route: BaseRoute, scope: dict[str, Any], method: str, context: object = None) -> Route:
    """What a route that matches says about itself; `context`: what FastAPI added when it included
    the route.
    """
    if isinstance(route, Mount | Host):
        if getattr(route.app, OPEN, False):
            return Route(is_open=True)
        return _found(route.routes or (), scope, method)
    if (included := getattr(route, "_match", None)) is not None:
        # A router that FastAPI includes: it alone knows which of its routes matches.
        _, more, inner, context = included(scope)
        return Route() if inner is None else _of(inner, {**scope, **more}, method, context)
    endpoint = scope.get("endpoint")
    if inspect.isclass(endpoint):
        names = ("head", "get") if method == "HEAD" else (method.lower(),)
        handlers = [getattr(endpoint, name) for name in names if hasattr(endpoint, name)]
        endpoint = handlers[0] if handlers and not _is_open(endpoint) else endpoint
    if _is_open(endpoint):
        return Route(is_open=True)
    requirement = _requirement(context or route, endpoint)
    parameters = scope.get("path_params", {})
    converted = functools.partial(_converted, context or route, parameters)
    return Route(requirement, parameters=parameters, converted=converted)


def _is_open(endpoint: object) -> bool:
    # A subclass is not open because its base is.
    if inspect.isclass(endpoint):
        return bool(vars(endpoint).get(OPEN))
    return bool(getattr(endpoint, OPEN, False))


def _requirement(route: object, endpoint: object) -> Requirement | None:
    """That of the endpoint, or of a dependency of FastAPI. Raises ConfigurationError for two."""
    found = {
        id(each): each for each in (requirement_of(endpoint), *_of_dependencies(route)) if each
    }
    if len(found) > 1:
        raise ConfigurationError(
            f"A route may have one requirement, not {', '.join(map(repr, found.values()))}."
        )
    return next(iter(found.values()), None)


def _of_dependencies(route: object) -> Iterable[Requirement | None]:
    for dependant in _dependants(route):
        yield requirement_of(dependant.call) if dependant.call else None


def _dependants(route: object) -> Iterator[Any]:
    """What FastAPI knows of the endpoint and of each of its dependencies; nothing of Starlette."""
    waiting = [getattr(route, "dependant", None)]
    while waiting:
        dependant = waiting.pop()
        if dependant is not None:
            yield dependant
            waiting += dependant.dependencies


def _converted(route: object, parameters: Mapping[str, object]) -> dict[str, list[object]]:
    """What FastAPI makes of the path parameters for the endpoint and its dependencies.

    A value that does not fit the annotation is left out: FastAPI answers 422.
    """
    found: dict[str, list[object]] = {}
    for dependant in _dependants(route):
        # Only FastAPI has dependants, so it is installed.
        from fastapi.dependencies.utils import request_params_to_args

        values, _ = request_params_to_args(dependant.path_params, parameters)
        for each in dependant.path_params:
            if each.name not in values:
                continue
            value = values[each.name]
            # A model stands for several parameters.
            members = getattr(type(value), "model_fields", None)
            parts = (
                [(_name(each, each.name, parameters), value)]
                if members is None
                else [
                    (_name(member, name, parameters), getattr(value, name))
                    for name, member in members.items()
                ]
            )
            for name, part in parts:
                found.setdefault(name, []).append(part)
    return found


def _name(declared: Any, name: str, parameters: Mapping[str, object]) -> str:
    """The path parameter that a parameter of a function, or a member of a model, is read from."""
    aliases = (getattr(declared, each, None) for each in ("alias", "validation_alias"))
    return next((each for each in aliases if isinstance(each, str) and each in parameters), name)


def _check_routes(routes: Iterable[Any], outer: frozenset[str] = frozenset()) -> None:
    """Raises ConfigurationError for a requirement whose path parameter its route does not have."""
    for route in routes:
        known = outer | set(getattr(route, "param_convertors", None) or ())
        if (included := getattr(route, "effective_route_contexts", None)) is not None:
            _check_routes(included(), outer)
        elif isinstance(route, Mount | Host):
            _check_routes(route.routes or (), known)
        elif requirement := _requirement(route, getattr(route, "endpoint", None)):
            requirement.check_parameters(known, f"the route {getattr(route, 'path', '')}")
