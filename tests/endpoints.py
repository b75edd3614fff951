"""What tests add to the table of endpoints (agentauth/urlconf_endpoints.py): addresses, bodies,
publicity.

Every suite that visits endpoints takes them from here: acts, contract, sweeps, fuzzing,
conformance, production. A new endpoint is in all of them, or a test names the list that lacks it.
"""

import inspect
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Protocol

from django.urls import URLPattern

from agentauth.openapi.document import openapi
from agentauth.urlconf_endpoints import endpoints
from approvals.admin_site import ControlRoom, site

ENDPOINTS: Final = endpoints()
ROUTES: Final = sorted({each.route for each in ENDPOINTS})
# `METHOD /path` → the operation as the API description has it.
OPERATIONS: Final[Mapping[str, Any]] = {
    f"{method.upper()} {path}": operation
    for path, methods in openapi()["paths"].items()
    for method, operation in methods.items()
}
API: Final = ("/v1/", "/.well-known/")
# They answer in JSON or text; the others are pages.
FOR_PROGRAMS: Final = (*API, "/health/", "/metrics")

# Open to callers without credentials. An endpoint joins these lists by decision, never by accident
# (docs/protocol.md section 2). Setup, recovery and claim links carry their secret: an unknown one
# is 404.
PUBLIC: Final = {
    "/",
    "/health/live",
    "/health/ready",
    "/health/startup",
    "/.well-known/agentauth",
    "/.well-known/oauth-authorization-server",
    "/.well-known/jwks.json",
    "/v1/schema/",
    "/docs/",
    "/sign-in/",
    "/recovered/",
    "/v1/audit/checkpoint",
    "/v1/audit/proof/inclusion",
    "/v1/audit/proof/consistency",
    "/v1/audit/proof/bundle",
    "/v1/audit/tile/entries/<tile:tile>",
    "/v1/audit/tile/<level:level>/<tile:tile>",
}
# The start of the ceremony of a sign-in. Registration, whose body proves itself, is not open to
# what the tests of strangers send.
PUBLIC_POSTS: Final = {"/sign-in/options"}
# A user may type these without the slash, and is redirected.
WITHOUT_SLASH: Final = {"/docs": "/docs/", "/admin": "/admin/"}
METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "MKCOL")
READING: Final = {"GET", "HEAD", "OPTIONS"}


def needed(operation: str) -> list[str]:
    """The query parameters that a call of the operation must have."""
    described = OPERATIONS.get(operation, {}).get("parameters", ())
    return [each["name"] for each in described if each["in"] == "query" and each["required"]]


def allowed(method: str, route: str) -> set[int]:
    """The statuses with which `route` may answer a caller without credentials."""
    if route in PUBLIC and method in READING:
        return {400, 405} if needed(f"GET {route}") else {200, 405}
    if route in WITHOUT_SLASH and method in READING:
        return {301, 405}
    if route in PUBLIC_POSTS and method == "POST":
        return {200}
    return {302, 400, 401, 403, 404, 405, 415}


# In a route `<uuid:grant_id>`, or the admin site's `(?P<url>.*)`; in a path `{grant_id}`.
_PARAMETER: Final = re.compile(r"\(\?P<(\w+)>[^)]*\)|<(?:\w+:)?(\w+)>|\{(\w+)\}")
# Not ids: the address of a tile of the log.
_SPELT: Final = {"level": "0", "tile": "000.p/1"}


def address(route: str, ids: Mapping[str, str]) -> str:
    """The route or path with its parameters filled in; one that `ids` lacks gets an unknown id."""

    def fill(found: re.Match[str]) -> str:
        name = str(found[found.lastindex or 0])
        return ids.get(name) or _SPELT.get(name, str(uuid.UUID(int=7)))

    return _PARAMETER.sub(fill, route)


PUBLIC_PATHS: Final = {address(route, {}) for route in PUBLIC}


# --- Pages ---------------------------------------------------------------------------------------


def pages() -> set[str]:
    """The routes of pages for people: each ends in a slash, as the addresses of files do not.

    Of the admin site these are our own pages, its lists and the page of a row; the others redirect
    or are refused (approvals/tests/test_control_room.py).
    """
    own = _own_pages() | {"index"}
    found = set()
    for endpoint in ENDPOINTS:
        name = endpoint.pattern.name or ""
        if endpoint.route.startswith("/admin/"):
            is_page = name in own or name.endswith(("_changelist", "_change"))
        else:
            is_page = "GET" in methods(endpoint.pattern)
        if is_page and endpoint.route.endswith("/") and not endpoint.route.startswith(FOR_PROGRAMS):
            found.add(endpoint.route)
    return found


def _own_pages() -> set[str]:
    """The names of the forms that the control room adds to Django's admin site."""
    return set(vars(ControlRoom)) - {"login", "logout", "index"}


# --- Acts ----------------------------------------------------------------------------------------


def writing() -> Iterator[str]:
    """`METHOD route` of every endpoint that may change something, as docs/acts.md names it.

    Of the admin site these are our forms and the buttons; that rows are read-only there has tests
    of its own.
    """
    own = _own_pages()
    for endpoint in ENDPOINTS:
        if not endpoint.route.startswith("/admin/") or endpoint.pattern.name in own:
            yield from (
                f"{method} {endpoint.route[1:]}"
                for method in endpoint.methods or methods(endpoint.pattern)
                if method not in READING
            )
    for model, model_admin in site._registry.items():
        place = f"admin/{model._meta.app_label}/{model._meta.model_name}/"
        yield from (f"POST {place} {action}" for action in model_admin.actions or ())


def methods(pattern: URLPattern) -> set[str]:
    """The methods that a function handles: `require_POST` and its like have them in a closure."""
    view: Any = pattern.callback
    while view:
        if found := inspect.getclosurevars(view).nonlocals.get("request_method_list"):
            return set(found)
        view = getattr(view, "__wrapped__", None)
    return {"POST"}


# --- Bodies of the API ---------------------------------------------------------------------------


class Sender(Protocol):
    """An agent and its service provider, from which the bodies of calls are made."""

    def newcomer(self) -> str:
        """The manifest of a key that is not registered yet."""

    def renewal(self) -> str:
        """A newer manifest of the agent."""

    def new_key(self) -> str:
        """The agent's statement that it takes another key."""

    def wish(self) -> dict[str, Any]:
        """A request for a grant."""

    def grant(self) -> str:
        """The id of an approved grant."""

    def token(self) -> str:
        """A token of an approved grant."""

    def question(self) -> dict[str, Any]:
        """What the service provider asks about such a token."""


# Operation → a body that it accepts.
BODIES: Final[Mapping[str, Callable[[Sender], dict[str, Any]]]] = {
    "POST /v1/agents": lambda by: {"manifest": by.newcomer()},
    "POST /v1/agents/me/manifest": lambda by: {"manifest": by.renewal()},
    "POST /v1/agents/me/key": lambda by: {"new_key": by.new_key()},
    "POST /v1/grants": lambda by: by.wish(),
    "POST /v1/catalogue": lambda _: {"catalogue": {"resources": {"mail": {"label": "Your mail"}}}},
    "POST /v1/tokens": lambda by: {"grant_id": by.grant()},
    "POST /v1/revoke": lambda by: {"token": by.token()},
    "POST /v1/introspect": lambda by: {"token": by.token()},
    "POST /v1/verify": lambda by: by.question(),
    "POST /v1/verify/batch": lambda by: {"requests": [by.question()]},
}
