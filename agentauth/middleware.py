"""Middleware: request id, host, plain form, rate limits, same origin, language, time zone.

The headers of every answer are in `security_headers.py`.
"""

import re
import zoneinfo
from collections.abc import Callable, Iterable, Iterator
from typing import cast
from urllib.parse import urlsplit

from django.conf import settings
from django.core.exceptions import DisallowedHost
from django.db import InterfaceError, OperationalError, connection
from django.http import (
    HttpRequest,
    HttpResponse,
    HttpResponseRedirect,
    StreamingHttpResponse,
)
from django.http.response import HttpResponseBase
from django.utils import timezone, translation

from agentauth.client_address import address_of
from agentauth.http_errors import RequestTooLargeError, domain_error, error_response
from agentauth.observability.logging_config import request_id
from agentauth.observability.request_ids import new_request_id
from agentauth.protocol.errors import (
    CsrfFailedError,
    InvalidRequestError,
    NotFoundError,
    RateLimitedError,
    TemporarilyUnavailableError,
)
from agentauth.server.request_framing import WAITED
from agentauth.startup_checks import START
from registry import caller_limits
from registry.models import Human
from verifier.endpoint_paths import LEAN_PATHS
from verifier.services import replay_cache_lease
from verifier.services.host_clock_check import CLOCK

Handler = Callable[[HttpRequest], HttpResponseBase]

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
PLAIN_PATH = re.compile(r"[A-Za-z0-9/._~-]*")
# The largest body anywhere, a batch of verify requests; all other views accept less and check that.
MAX_BODY_BYTES = 1024 * 1024
MAX_LENGTH_DIGITS = 20
# The longest wait for a thread: short enough that a refused client can retry in its own time limit.
MOST_WAIT_SECONDS = 2.0
# Never limited: an orchestrator would restart a process that is merely busy.
PROBES = ("/health/", "/metrics")
# Probes and scrapers address one process of many by its IP address. These paths make no link,
# cookie or redirect, so a foreign Host does no harm.
ANY_HOST_PATHS = frozenset({"/health/live", "/health/ready", "/health/startup", "/metrics"})
FOREIGN_HOST = "agentauth.foreign_host"
REGISTRATION = "/v1/agents"
ENTRANCES = ("/sign-in/", "/setup/", "/recover/", "/claim/")


class RequestIdMiddleware:
    """Gives each request our own id; one sent by the client is never used."""

    def __init__(self, get_response: Handler) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        # Set already if the verifier's endpoint handed the request on.
        own = request_id.get() or new_request_id()
        request.request_id = own  # type: ignore[attr-defined]  # our own attribute
        # Every line logged meanwhile in this thread carries the id.
        token = request_id.set(own)
        try:
            response = self.get_response(request)
        finally:
            request_id.reset(token)
        response["X-Request-Id"] = own
        return response


class ServerNonceMiddleware:
    """Sends the nonce for the agent's next proof if the check of this one set it."""

    def __init__(self, get_response: Handler) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        response = self.get_response(request)
        if nonce := getattr(request, "dpop_nonce", None):
            response["DPoP-Nonce"] = nonce
        return response


class OverloadMiddleware:
    """Load shedding: a request that waited too long for a thread gets 503.

    If calls come faster than they can be answered, all would wait longer and longer, none in time.
    """

    def __init__(self, get_response: Handler) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        if WAITED.get() > MOST_WAIT_SECONDS and not request.path.startswith(PROBES):
            return error_response(
                request, TemporarilyUnavailableError("Too many calls at once. Try again shortly.")
            )
        return self.get_response(request)


def take_any_host(request: HttpRequest) -> None:
    """Replace a foreign Host with ours, and set FOREIGN_HOST in META for later code."""
    try:
        request.get_host()
    except DisallowedHost:
        request.META |= {FOREIGN_HOST: True, "HTTP_HOST": settings.ALLOWED_HOSTS[0]}


class OneHostMiddleware:
    """Require our host name, except at NAMELESS paths.

    In development, redirect 127.0.0.1 and [::1] to localhost: an IP address is no passkey rp id.
    """

    def __init__(self, get_response: Handler) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        if request.path in ANY_HOST_PATHS:
            take_any_host(request)
            return self.get_response(request)
        request.get_host()  # raises on a foreign Host before anything else is looked at
        if (
            settings.DEVELOPMENT
            and request.method == "GET"
            and "text/html" in request.headers.get("Accept", "")
        ):
            host = urlsplit(f"//{request.get_host()}").hostname
            if host in {"127.0.0.1", "::1"}:
                return HttpResponseRedirect(settings.PUBLIC_URL + request.get_full_path())
        return self.get_response(request)


class PlainRequestMiddleware:
    """Each address has one spelling, and each body a Content-Length within a limit.

    A proof names its URL as text, so `/v1/%61gents` would be a second name of `/v1/agents`.
    PostgreSQL raises on a NUL in a value. Django reads a chunked body as empty, which its sender
    did not mean.
    """

    def __init__(self, get_response: Handler) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        # As the client sent it, if the server passes that on: Django's own path is decoded.
        meta = request.META
        raw = str(meta.get("RAW_URI", "")).partition("?")[0]
        if "%" in raw or not PLAIN_PATH.fullmatch(request.path):
            return error_response(request, NotFoundError())
        if "%00" in meta.get("QUERY_STRING", ""):
            return error_response(
                request, InvalidRequestError("A query parameter must not contain a NUL character.")
            )
        if "HTTP_TRANSFER_ENCODING" in meta:
            return error_response(
                request, InvalidRequestError("Send a Content-Length header with the body.")
            )
        length = meta.get("CONTENT_LENGTH") or "0"
        # More digits than any length has: Python would refuse to parse them.
        if not length.isdecimal() or len(length) > MAX_LENGTH_DIGITS:
            return error_response(
                request, InvalidRequestError("Send a Content-Length header with the body.")
            )
        if int(length) > MAX_BODY_BYTES:
            return error_response(
                request, RequestTooLargeError("The body is larger than any endpoint accepts.")
            )
        return self.get_response(request)


# These need no database, so they are served in any case.
_WITHOUT_DATABASE = ANY_HOST_PATHS | {"/v1/schema/", "/docs", "/docs/"}


def _ask_nothing(*_: object) -> None:
    """Refuse a query: until a look succeeds, the rows may be those of a restored database."""
    raise OperationalError("it is unknown now whether this process may act for the installation")


class InstallationMiddleware:
    """Answers 503, except at _WITHOUT_DATABASE, while this process may not act."""

    def __init__(self, get_response: Handler) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        if request.path in _WITHOUT_DATABASE:
            return self.get_response(request)
        try:
            START.require()
            halt = replay_cache_lease.LEASE.halt()
        except (TemporarilyUnavailableError, OperationalError, InterfaceError) as error:
            if START.pending or request.method not in SAFE_METHODS:
                return error_response(request, domain_error(error))
            # A page that needs no row is still served.
            with connection.execute_wrapper(_ask_nothing):
                return self.get_response(request)
        if halt:
            return error_response(request, TemporarilyUnavailableError(halt.told))
        return self.get_response(request)


class HostClockMiddleware:
    """Refuses every change with 503, before it begins, while this host's clock is wrong."""

    def __init__(self, get_response: Handler) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        # Verify, batch and introspect answer as the verifier's processes do. Introspect checks the
        # clock itself; verify and batch refuse through the lease, which records no event.
        if request.method not in SAFE_METHODS and request.path not in LEAN_PATHS:
            try:
                CLOCK.check()
            except (TemporarilyUnavailableError, OperationalError, InterfaceError) as error:
                return error_response(request, domain_error(error))
        return self.get_response(request)


class RateLimitMiddleware:
    """Counts each call against its human, or against the address of a caller not yet authenticated.

    Agents and service providers are counted where they authenticate (registry/authentication.py),
    after their credentials were checked: valid ones work even at an address whose allowance others
    used up. Credentials that no view checks count as none.
    """

    def __init__(self, get_response: Handler) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        try:
            self.count(request)
        except RateLimitedError as error:
            return error_response(request, error)
        return self.get_response(request)

    def process_view(
        self, request: HttpRequest, view: Handler, *_arguments: object
    ) -> HttpResponseBase | None:
        """Count a call that `count` skipped for its credentials, but whose view asks for none."""
        asks_nobody = not getattr(getattr(view, "cls", None), "authentication_classes", True)
        if not asks_nobody or getattr(request, "counted", False):
            return None
        request.counted = True  # type: ignore[attr-defined]  # as below
        try:
            caller_limits.take(caller_limits.ADDRESS, address_of(request))
        except RateLimitedError as error:
            return error_response(request, error)
        return None

    @staticmethod
    def count(request: HttpRequest) -> None:
        """Raises RateLimitedError if an allowance is used up."""
        path, registers = request.path, request.path == REGISTRATION and request.method == "POST"
        presents = "HTTP_DPOP" in request.META or "HTTP_AUTHORIZATION" in request.META
        if path.startswith(PROBES):
            return
        signed_in = isinstance(getattr(request, "user", None), Human)
        if path.startswith("/v1/") and presents and not registers and not signed_in:
            return
        request.counted = True  # type: ignore[attr-defined]  # not counted again
        if signed_in:
            caller_limits.take(caller_limits.HUMAN, str(request.user.pk))
        elif registers or (request.method == "POST" and path.startswith(ENTRANCES)):
            caller_limits.take(caller_limits.ENTRY, address_of(request))
            if registers:
                caller_limits.take(caller_limits.STRANGERS, caller_limits.REGISTRATIONS)
        else:
            caller_limits.take(caller_limits.ADDRESS, address_of(request))


class NoBrowserMiddleware:
    """Lets an API call that no browser made skip the middleware below this, except the rate limits.

    Sessions, messages, CSRF, languages and time zones do nothing without a cookie or a page. Put
    middleware that concerns the API too above this one.
    """

    def __init__(self, get_response: Handler) -> None:
        self.get_response = self.view = get_response
        # A middleware that Django wraps has `get_response`; Django's own innermost handler has not.
        while inner := getattr(self.view, "get_response", None):
            self.view = inner

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        meta = request.META
        if (
            not request.path.startswith("/v1/")
            or meta.get("HTTP_COOKIE")
            or "text/html" in meta.get("HTTP_ACCEPT", "")
        ):
            return self.get_response(request)
        response: HttpResponse
        try:
            RateLimitMiddleware.count(request)
        except RateLimitedError as error:
            response = error_response(request, error)
        else:
            response = cast("HttpResponse", self.view(request))
        return response


class SameOriginMiddleware:
    """A request that changes something and carries our cookies must come from our own pages.

    In addition to Django's CSRF token and SameSite=Strict. /v1/ accepts no change by cookie.
    """

    def __init__(self, get_response: Handler) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        if (
            request.method not in SAFE_METHODS
            and not request.path.startswith("/v1/")
            and not self.same_origin(request)
        ):
            return error_response(
                request, CsrfFailedError("This request did not come from this site's own pages.")
            )
        return self.get_response(request)

    @staticmethod
    def same_origin(request: HttpRequest) -> bool:
        # Browsers always send Origin with a POST: a request without it comes from no page of ours.
        site = request.headers.get("Sec-Fetch-Site", "same-origin")
        return request.headers.get("Origin") == settings.ORIGIN and site == "same-origin"


class LanguageMiddleware:
    """Pages in the person's language, else in the one that their browser remembers or asks for.

    The API's texts are part of its contract and stay English.
    """

    def __init__(self, get_response: Handler) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        if request.path.startswith("/v1/"):
            return self.get_response(request)
        own = getattr(request.user, "language", None)
        language = own or translation.get_language_from_request(request)
        with translation.override(language):
            response = self.get_response(request)
        if isinstance(response, StreamingHttpResponse):
            # No view here streams asynchronously.
            parts = cast("Iterable[bytes]", response.streaming_content)
            response.streaming_content = _in_language(language, parts)
        return response


def _in_language(language: str, parts: Iterable[bytes]) -> Iterator[bytes]:
    """A streamed file is written after the middleware has returned."""
    with translation.override(language):
        yield from parts


class TimeZoneMiddleware:
    """Shows times on pages in the signed-in human's time zone."""

    def __init__(self, get_response: Handler) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        zone = getattr(request.user, "time_zone", "UTC")
        with timezone.override(zoneinfo.ZoneInfo(zone)):
            return self.get_response(request)
