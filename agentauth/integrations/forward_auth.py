"""Forward auth: a reverse proxy asks here before it passes a request on. A WSGI application.

For APIs of any language behind nginx (`auth_request`), Traefik (`forwardAuth`) or Envoy
(`ext_authz` over HTTP): examples/forward-auth has a configuration of each. Run it beside the proxy,
on loopback or in a private network:

    AGENTAUTH_CLIENT_SECRET=… gunicorn --bind 127.0.0.1:9000 --threads 8 --forwarder-headers '' \
        'agentauth.integrations.forward_auth:application("agentauth.toml")'

`agentauth.toml` names the registry, the audience and every route:

    registry_url = "https://registry.example.com"
    client_id = "…"
    audience = "https://api.example.com"
    proxy = "nginx"            # or "traefik", "envoy": where the original request is found

    [[routes]]
    methods = ["GET"]
    path = "/calendar/{id}"
    requires = ["read", "calendar/{id}"]

    [[routes]]
    methods = ["GET"]
    path = "/health"
    open = true

The first route that fits counts; a request that fits none is refused. No proxy sends the body, so a
route here names no amount and no arguments: protect payments in the API itself.
"""

import logging
import os
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

from agentauth.protocol.errors import (
    AgentAuthError,
    InvalidRequestError,
    TemporarilyUnavailableError,
)
from agentauth.sdk.errors import RefusedError
from agentauth.sdk.refusal_responses import HttpAnswer
from agentauth.sdk.url_checks import check_audience
from agentauth.sdk.verifier import Allowed, VerifierClient

from .incoming_request import WEBSOCKET, Incoming, question, wsgi_headers, wsgi_target
from .refusals_and_caching import PRIVATE, once, refusal
from .requirement import ConfigurationError, Requirement, requires

logger = logging.getLogger(__name__)

SECRET_VARIABLE: Final = "AGENTAUTH_CLIENT_SECRET"  # noqa: S105 — its name
# How each proxy passes on the original request: the headers of method and target. Envoy sends the
# request itself. The proxy replaces whatever the caller sent under these names.
PROXIES: Final[Mapping[str, tuple[str, str] | None]] = {
    "nginx": ("X-Original-Method", "X-Original-URI"),
    "traefik": ("X-Forwarded-Method", "X-Forwarded-Uri"),
    "envoy": None,
}
# What the API behind learns: the proxy passes on the headers that its configuration names.
TOLD: Final = (
    "X-AgentAuth-Agent",
    "X-AgentAuth-Subject",
    "X-AgentAuth-Grant",
    "X-AgentAuth-Decision",
    "X-AgentAuth-Repeated",
)
# nginx takes no other status for a no; it makes 500 of all others. The status to answer, and the
# body, are in headers, from which its configuration answers the agent.
_NGINX_STATUSES: Final = frozenset({200, 401, 403})
_STATUS_HEADER: Final = "X-AgentAuth-Status"
_BODY_HEADER: Final = "X-AgentAuth-Body"
_SETTINGS: Final = {"registry_url", "client_id", "audience", "proxy", "routes"}
_ROUTE_MEMBERS: Final = {"methods", "path", "requires", "open", "handles_repeats"}
_REASONS: Final = {
    200: "OK", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 409: "Conflict",
    429: "Too Many Requests", 503: "Service Unavailable",
}  # fmt: skip

StartResponse = Callable[[str, list[tuple[str, str]]], object]


@dataclass(frozen=True, slots=True)
class Route:
    """One entry of `[[routes]]`. `requirement` is None for a route that is open to every caller."""

    methods: frozenset[str]
    segments: tuple[str, ...]
    requirement: Requirement | None

    def parameters(self, method: str, segments: Sequence[str]) -> dict[str, str] | None:
        """The path parameters of a request, its segments decoded; None if the route does not fit.

        `{name:path}` takes all the segments that are left, and at least one.
        """
        if method not in self.methods:
            return None
        found: dict[str, str] = {}
        for place, expected in enumerate(self.segments):
            if place >= len(segments):
                return None
            if expected.endswith(":path}"):
                rest = segments[place:]
                name = expected[1 : -len(":path}")]
                return found | {name: "/".join(rest)} if all(rest) else None
            if expected.startswith("{"):
                if not segments[place]:
                    return None
                found[expected[1:-1]] = segments[place]
            elif expected != segments[place]:
                return None
        return found if len(segments) == len(self.segments) else None


@dataclass(frozen=True, slots=True)
class Configuration:
    """The file, checked."""

    registry_url: str
    client_id: str
    audience: str
    proxy: str
    routes: tuple[Route, ...]

    @classmethod
    def read(cls, text: str) -> "Configuration":
        """Raises ConfigurationError with the member that is wrong and how to write it."""
        try:
            found = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigurationError(f"The file is not TOML: {error}.") from None
        _check_members(found, _SETTINGS, "the file")
        texts = {name: _text(found, name) for name in ("registry_url", "client_id", "audience")}
        proxy = _text(found, "proxy")
        if proxy not in PROXIES:
            raise ConfigurationError(f"`proxy` must be one of {', '.join(PROXIES)}, not {proxy!r}.")
        routes = found.get("routes")
        if not isinstance(routes, list) or not routes:
            raise ConfigurationError("Write at least one [[routes]].")
        try:
            check_audience(texts["audience"])
        except AgentAuthError as error:
            raise ConfigurationError(f"`audience`: {error.description}") from None
        made = tuple(_route(each, number) for number, each in enumerate(routes, start=1))
        return cls(texts["registry_url"], texts["client_id"], texts["audience"], proxy, made)


class ForwardAuth:
    """The WSGI application. It answers 200 if the proxy may pass the request on."""

    def __init__(self, configuration: Configuration, client: VerifierClient) -> None:
        self._configuration = configuration
        self._client = client

    def __call__(
        self, environ: Mapping[str, Any], start_response: StartResponse
    ) -> Iterable[bytes]:
        try:
            answer = self._allowed(_original(environ, self._configuration.proxy))
        except AgentAuthError as error:
            answer = refusal(error)
        except Exception:
            # A defect must not let a request pass, nor tell the caller anything.
            logger.exception("a request could not be checked")
            answer = refusal(TemporarilyUnavailableError())
        if self._configuration.proxy == "nginx":
            answer = _for_nginx(answer)
        headers = {**answer.headers, "Content-Length": str(len(answer.body))}
        start_response(f"{answer.status} {_REASONS.get(answer.status, '')}", list(headers.items()))
        return [b"" if environ.get("REQUEST_METHOD") == "HEAD" else answer.body]

    def _allowed(self, incoming: Incoming) -> HttpAnswer:
        """Raises AgentAuthError for everything but a yes."""
        segments = _segments(incoming.target)
        if incoming.lines("Upgrade"):
            # Through a tunnel, requests would pass that nothing checks; an open route has none.
            raise InvalidRequestError(WEBSOCKET)
        for route in self._configuration.routes:
            found = route.parameters(incoming.method, segments)
            if found is None:
                continue
            if route.requirement is None:
                return HttpAnswer(200, _told(None), b"")
            asked = question(incoming, self._configuration.audience)
            act = route.requirement.action(_with_parameters(incoming, found))
            allowed = self._client.verify(**asked, action=act)
            once(allowed, handles_repeats=route.requirement.handles_repeats)
            return HttpAnswer(200, _told(allowed), b"")
        # Without credentials this is 401, as everywhere.
        question(incoming, self._configuration.audience)
        raise RefusedError("insufficient_scope", "no_capability", {})


def application(path: str | os.PathLike[str] = "agentauth.toml") -> ForwardAuth:
    """The application for the configuration file at `path`.

    The client secret comes from AGENTAUTH_CLIENT_SECRET. Raises ConfigurationError.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{os.fspath(path)} cannot be read: {error}.") from None
    configuration = Configuration.read(text)
    secret = os.environ.get(SECRET_VARIABLE, "")
    if not secret:
        raise ConfigurationError(f"Set {SECRET_VARIABLE} to the service provider's client secret.")
    try:
        client = VerifierClient(configuration.registry_url, configuration.client_id, secret)
    except AgentAuthError as error:
        raise ConfigurationError(f"`registry_url`: {error.description}") from None
    return ForwardAuth(configuration, client)


def _original(environ: Mapping[str, Any], proxy: str) -> Incoming:
    """The request that the proxy asks about. Raises TemporarilyUnavailableError if it is not told.

    A missing header is a mistake in the proxy's configuration: nothing passes.
    """
    headers = wsgi_headers(environ)
    names = PROXIES[proxy]
    if names is None:
        return Incoming(str(environ["REQUEST_METHOD"]), wsgi_target(environ), headers)
    told = Incoming("", "", headers)
    values = [told.lines(name) for name in names]
    if any(len(each) != 1 or not each[0] for each in values):
        logger.error("the proxy must set %s and %s on each request", *names)
        raise TemporarilyUnavailableError
    return Incoming(values[0][0], values[1][0], headers)


def _with_parameters(incoming: Incoming, parameters: Mapping[str, object]) -> Incoming:
    return Incoming(incoming.method, incoming.target, incoming.headers, parameters)


def _segments(target: str) -> list[str]:
    """The decoded segments of the target's path.

    Raises InvalidRequestError for a path that the API behind might read as another one.
    """
    path = target.partition("?")[0]
    # nginx passes a fragment on, and an API may take what follows it for a part of the path.
    if not path.startswith("/") or "#" in target:
        raise InvalidRequestError("The request's target must be a path without a fragment.")
    try:
        segments = [unquote(each, errors="strict") for each in path[1:].split("/")]
    except UnicodeDecodeError:
        raise InvalidRequestError("The path must be UTF-8.") from None
    # A trailing slash is an empty last segment, which no placeholder takes.
    for place, each in enumerate(segments):
        if (
            each in {".", ".."}
            or (not each and 0 < place + 1 < len(segments))
            or any(letter in "/\\;" or not letter.isprintable() for letter in each)
        ):
            raise InvalidRequestError(
                "The path must have no empty or dot segments, and no encoded slashes, backslashes,"
                " semicolons or control characters."
            )
    return segments


def _told(allowed: Allowed | None) -> dict[str, str]:
    """Headers for the API behind; empty on an open route.

    All are always there: the proxy must replace what the caller sent under these names.
    """
    headers = dict.fromkeys(TOLD, "")
    if allowed is None:
        return headers
    values = (allowed.agent_id, allowed.subject, allowed.grant_id, allowed.decision_id)
    headers |= dict(zip(TOLD, values, strict=False))
    headers |= {TOLD[-1]: "true" if allowed.repeated else "false", "Cache-Control": PRIVATE}
    if allowed.nonce is not None:
        headers["DPoP-Nonce"] = allowed.nonce
    if not all(value.isascii() and value.isprintable() for value in headers.values()):
        raise TemporarilyUnavailableError
    return headers


def _for_nginx(answer: HttpAnswer) -> HttpAnswer:
    told = {_STATUS_HEADER: str(answer.status), _BODY_HEADER: answer.body.decode("ascii")}
    status = answer.status if answer.status in _NGINX_STATUSES else 403
    return HttpAnswer(status, {**answer.headers, **told}, answer.body)


def _route(entry: object, number: int) -> Route:
    where = f"route {number}"
    if not isinstance(entry, dict):
        raise ConfigurationError(f"{where} must be a table: write [[routes]].")
    _check_members(entry, _ROUTE_MEMBERS, where)
    methods = _texts(entry.get("methods"))
    if not methods or not all(each.isupper() and each.isascii() for each in methods):
        raise ConfigurationError(f'`methods` of {where} must be a list such as ["GET"].')
    path = _text(entry, "path", where)
    segments = tuple(path[1:].split("/"))
    if not path.startswith("/") or any(_is_bad(each, segments[:-1]) for each in segments):
        raise ConfigurationError(
            f"`path` of {where} must be like /calendar/{{id}}: literal segments, {{name}}, and"
            " {name:path} at the end only."
        )
    is_open = entry.get("open", False)
    if not isinstance(is_open, bool) or is_open == ("requires" in entry):
        raise ConfigurationError(f"{where} needs either `requires` or `open = true`.")
    if is_open:
        return Route(frozenset(methods), segments, None)
    match _texts(entry["requires"]):
        case [kind, resource]:
            pass
        case _:
            raise ConfigurationError(
                f'`requires` of {where} must be like ["read", "calendar/{{id}}"].'
            )
    handles = entry.get("handles_repeats", False)
    if not isinstance(handles, bool):
        raise ConfigurationError(f"`handles_repeats` of {where} must be true or false.")
    made = requires(kind, resource, handles_repeats=handles)
    made.check_parameters(
        [each.strip("{}").removesuffix(":path") for each in segments if each.startswith("{")], where
    )
    return Route(frozenset(methods), segments, made)


def _is_bad(segment: str, before_last: Sequence[str]) -> bool:
    if not segment.startswith("{"):
        return "{" in segment or "}" in segment or unquote(segment) != segment
    name = segment[1:-1].removesuffix(":path")
    is_whole = segment.endswith("}") and name.isidentifier()
    return not is_whole or (segment.endswith(":path}") and segment in before_last)


def _texts(value: object) -> list[str] | None:
    """`value` if it is a list of texts."""
    is_list = isinstance(value, list) and all(isinstance(each, str) for each in value)
    return list(value) if is_list and isinstance(value, list) else None


def _text(table: Mapping[str, Any], name: str, where: str = "the file") -> str:
    value = table.get(name)
    if not isinstance(value, str) or not value:
        raise ConfigurationError(f"`{name}` of {where} must be a text.")
    return value


def _check_members(table: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    if unknown := sorted(table.keys() - set(known)):
        raise ConfigurationError(f"{where} has the unknown member `{unknown[0]}`.")
