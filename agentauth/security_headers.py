"""The middleware that adds the security headers to every answer."""

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.utils.cache import patch_vary_headers

from agentauth.middleware import Handler

CONTENT_SECURITY_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "font-src 'self'",
        "connect-src 'self'",
        "manifest-src 'self'",
        # Pushes (static/push-worker.js).
        "worker-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    ]
)
*STANDING_HEADERS, NO_STORE = [
    (name.lower(), (name, value))
    for name, value in [
        ("Content-Security-Policy", CONTENT_SECURITY_POLICY),
        ("X-Content-Type-Options", "nosniff"),
        ("Referrer-Policy", "no-referrer"),
        ("Cross-Origin-Opener-Policy", "same-origin"),
        ("Cross-Origin-Resource-Policy", "same-origin"),
        (
            "Permissions-Policy",
            (
                "publickey-credentials-get=(self), publickey-credentials-create=(self), "
                "camera=(), microphone=(), geolocation=()"
            ),
        ),
        ("Cache-Control", "no-store"),
    ]
]
BAD_REQUEST = 400


class SecurityHeadersMiddleware:
    """Headers on every answer, errors included. Answers to people and agents are not stored."""

    def __init__(self, get_response: Handler) -> None:
        self.get_response = get_response
        self.static = settings.STATIC_URL

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        response = self.get_response(request)
        # Straight into Django's own store: our constant headers need no validation for each answer.
        kept = response.headers._store  # noqa: SLF001 — the public way validates
        for name, header in STANDING_HEADERS:
            kept.setdefault(name, header)
        if not (request.path.startswith(self.static) and response.status_code < BAD_REQUEST):
            kept.setdefault(*NO_STORE)
            patch_vary_headers(response, ["Cookie"])
        # Set here, since inner middleware may be bypassed. Without it the body is sent in chunks.
        if isinstance(response, HttpResponse):
            kept.setdefault("content-length", ("Content-Length", str(len(response.content))))
        return response
