"""The page `/metrics`, and who may read it."""

import logging
import os
import time
from typing import Final

from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils.crypto import constant_time_compare
from django.views.decorators.http import require_safe
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from agentauth.http_errors import body_of
from agentauth.middleware import FOREIGN_HOST
from agentauth.observability import database_metrics, health, metrics
from agentauth.observability.server_metrics import ServerCollector
from agentauth.protocol.errors import NotFoundError

logger = logging.getLogger(__name__)

LOOPBACK: Final = frozenset({"127.0.0.1", "::1"})
# Log refused scrapes at most this often (s): a misconfigured scraper retries every few seconds.
_SAID_EVERY: Final = 60.0
_said_at = -_SAID_EVERY


@require_safe
def page(request: HttpRequest) -> HttpResponse:
    """`GET /metrics`. A caller without the token gets 404.

    A refusal is counted but writes no event: a scraper would fill the log.
    """
    if not _may_read(request):
        return _refuse_metrics()
    # Alerts are about these checks, and often only the scraper asks: a load balancer may not.
    health.run_checks(request)
    registry = CollectorRegistry()
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        # Under gunicorn each process writes its own files, and any process reads all of them
        # (agentauth/server/web_gunicorn.py).
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # the library's own
        registry.register(database_metrics.StateCollector())
        registry.register(ServerCollector())
        return _text(generate_latest(registry))
    registry.register(database_metrics.StateCollector())
    return _text(generate_latest(REGISTRY) + generate_latest(registry))


def _may_read(request: HttpRequest) -> bool:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if settings.METRICS_TOKEN:
        return scheme.lower() == "bearer" and constant_time_compare(token, settings.METRICS_TOKEN)
    # In production a proxy on the same machine makes every caller look local, so the token is
    # required there. A foreign Host is what a web page in a browser on this machine would send.
    is_near = request.META.get("REMOTE_ADDR") in LOOPBACK and FOREIGN_HOST not in request.META
    return bool(settings.DEVELOPMENT) and is_near


def _refuse_metrics() -> HttpResponse:
    global _said_at  # noqa: PLW0603 — of this process
    error = NotFoundError()
    metrics.count_error(error)
    if time.monotonic() - _said_at >= _SAID_EVERY:
        _said_at = time.monotonic()
        logger.warning(
            "/metrics was refused to a caller that did not send METRICS_TOKEN as a bearer token"
        )
    return JsonResponse(body_of(error), status=404, headers={"Cache-Control": "no-store"})


def _text(content: bytes) -> HttpResponse:
    return HttpResponse(content, content_type=CONTENT_TYPE_LATEST)
