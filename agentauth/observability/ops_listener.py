"""A listener for health and metrics in processes that serve nothing else."""

import ipaddress
import logging
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET, AF_INET6
from typing import Any, Final
from urllib.parse import urlsplit

from django.conf import settings
from django.db import connection
from django.http import HttpRequest, HttpResponse

from agentauth.middleware import take_any_host
from agentauth.observability import health
from agentauth.observability.metrics_page import page
from agentauth.postgresql.base import use_short_timeouts_here

logger = logging.getLogger(__name__)

# The listener's socket timeout (s), and its limit of connections.
_WAIT_SECONDS: Final = 5.0
_MOST_CONNECTIONS: Final = 16


# The listener serves nothing else.
_VIEWS: Final[dict[str, Callable[[HttpRequest], HttpResponse]]] = {
    "/health/live": health.live,
    "/health/ready": health.ready,
    "/health/startup": health.ready,
    "/metrics": page,
}


class _Handler(BaseHTTPRequestHandler):
    timeout = _WAIT_SECONDS

    def do_GET(self) -> None:
        view = _VIEWS.get(self.path.partition("?")[0])
        if view is None:
            self.send_error(404)
            return
        request = HttpRequest()
        request.method = self.command
        request.META = {
            "REMOTE_ADDR": self.client_address[0],
            "HTTP_HOST": self.headers.get("Host", ""),
            "HTTP_AUTHORIZATION": self.headers.get("Authorization", ""),
            health.SIGNS_NOTHING: True,
        }
        take_any_host(request)
        use_short_timeouts_here()
        try:
            self._send(view(request))
        except OSError:
            # The client hung up.
            self.close_connection = True
        except Exception:
            logger.exception("unhandled error in the operations listener")
            self.send_error(500)
        finally:
            connection.close()

    do_HEAD = do_GET  # noqa: N815 — the library's names

    def _send(self, response: HttpResponse) -> None:
        self.send_response_only(response.status_code)
        for name, value in response.items():
            self.send_header(name, value)
        self._end(response.content)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """An empty body: the default page echoes the request."""
        self.send_response_only(code)
        self._end(b"")

    def _end(self, content: bytes) -> None:
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Log nothing: probes would fill the log."""


class Listener(ThreadingHTTPServer):
    """Answers in its own threads, at most _MOST_CONNECTIONS at once."""

    def __init__(self, host: str, port: int) -> None:
        self.address_family = AF_INET6 if ipaddress.ip_address(host).version == 6 else AF_INET  # noqa: PLR2004
        self._free = threading.BoundedSemaphore(_MOST_CONNECTIONS)
        super().__init__((host, port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log nothing when a client hangs up or sends garbage."""


def listen() -> Listener | None:
    """Answer at OPERATIONS_BIND, if set, until this process ends.

    Raises SystemExit if the address cannot be bound.
    """
    if not settings.OPERATIONS_BIND:
        return None
    try:
        parts = urlsplit(f"//{settings.OPERATIONS_BIND}")
        made = Listener(parts.hostname or "", parts.port or 0)
    except (ValueError, OSError) as error:
        raise SystemExit(
            f"OPERATIONS_BIND must be a free address:port of this host: {error}"
        ) from None
    threading.Thread(target=made.serve_forever, name="operations", daemon=True).start()
    return made
