"""What every request passes: its id, one host, same origin for pages, security headers, the reader's time zone."""

import zoneinfo
from collections.abc import Callable
from urllib.parse import urlsplit

from django.conf import settings
from django.http import HttpRequest, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.utils import timezone

from agentauth.http_errors import error_response
from agentauth.protocol.errors import CsrfFailedError, NotFoundError
from audit.identifiers import new_id

Handler = Callable[[HttpRequest], HttpResponseBase]

CONTENT_SECURITY_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "font-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    ]
)
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class RequestIdMiddleware:
    """Gives each request our own id; what the client sent under that name is never used."""

    def __init__(self, get_response: Handler) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        request.request_id = str(new_id())  # type: ignore[attr-defined]  # our own attribute
        response = self.get_response(request)
        response["X-Request-Id"] = request.request_id  # type: ignore[attr-defined]  # our own attribute
        return response


class ServerNonceMiddleware:
    """Sends along the nonce that whoever read the request's proof wants in the agent's next one, errors included."""

    def __init__(self, get_response: Handler) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        response = self.get_response(request)
        if nonce := getattr(request, "dpop_nonce", None):
            response["DPoP-Nonce"] = nonce
        return response


class SecurityHeadersMiddleware:
    """Headers on every answer, errors included. Answers to people and agents are never stored."""

    def __init__(self, get_response: Handler) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        response = self.get_response(request)
        response.setdefault("Content-Security-Policy", CONTENT_SECURITY_POLICY)
        response.setdefault("X-Content-Type-Options", "nosniff")
        response.setdefault("Referrer-Policy", "no-referrer")
        response.setdefault("Cross-Origin-Opener-Policy", "same-origin")
        response.setdefault("Cross-Origin-Resource-Policy", "same-origin")
        response.setdefault(
            "Permissions-Policy",
            "publickey-credentials-get=(self), publickey-credentials-create=(self), "
            "camera=(), microphone=(), geolocation=()",
        )
        if not request.path.startswith(settings.STATIC_URL):
            response.setdefault("Cache-Control", "no-store")
        return response


class OneHostMiddleware:
    """In development a page asked at 127.0.0.1 or [::1] moves to localhost: an IP address is no passkey rp id."""

    def __init__(self, get_response: Handler) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
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


class NoNulMiddleware:
    """No address of ours holds a NUL, and PostgreSQL raises where one is looked for."""

    def __init__(self, get_response: Handler) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        query = request.META.get("QUERY_STRING", "")
        if "\0" in request.path or "\0" in query or "%00" in query:
            return error_response(request, NotFoundError("There is nothing here, or it is not yours."))
        return self.get_response(request)


class SameOriginMiddleware:
    """A request that changes something and carries our cookies must come from our own pages.

    Beside Django's CSRF token and SameSite=Strict. The agents' and service providers' API ignores cookies, so it
    is not concerned.
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
        # Browsers always send Origin with a POST. A client without it has no victim's cookies to ride on, but a
        # page act needs none such either: refuse.
        site = request.headers.get("Sec-Fetch-Site", "same-origin")
        return request.headers.get("Origin") == settings.ORIGIN and site == "same-origin"


class TimeZoneMiddleware:
    """Times on pages are in the signed-in human's zone."""

    def __init__(self, get_response: Handler) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        zone = getattr(request.user, "time_zone", "UTC")
        with timezone.override(zoneinfo.ZoneInfo(zone)):
            return self.get_response(request)
