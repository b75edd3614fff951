"""How gunicorn serves us, as its configuration: `gunicorn -c python:agentauth.web_server agentauth.wsgi:application`."""

import contextlib
import os
import socket
import time
from pathlib import Path
from typing import Any

from gunicorn.workers.gthread import ThreadWorker

# Before the application is loaded: settings and the metrics library read these from the environment.
os.environ.setdefault("WEB_CONCURRENCY", "2")
_var = os.environ.get("VAR_DIR") or str(Path(__file__).resolve().parent.parent / "var")
METRICS_DIRECTORY = Path(os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", f"{_var}/metrics"))

# gunicorn's own settings, by its names.
worker_class = "agentauth.web_server.Worker"
workers = int(os.environ["WEB_CONCURRENCY"])
threads = int(os.environ.get("WEB_THREADS", "16"))
# To read and answer one request, seconds: above the longest long poll.
timeout = 45
graceful_timeout = 30
loglevel = "warning"
# The control socket would lie in the home directory; nobody here uses it.
control_socket_disable = True
# Nobody may name the scheme or SCRIPT_NAME to gunicorn: what proxies say is read in agentauth/proxies.py.
forwarded_allow_ips = ""
forwarder_headers = ""
# A name with an underscore would pass for one with a hyphen.
header_map = "drop"
# Room for the longest token and proof (8 kB each) in a line of its own, and for what proxies add.
limit_request_line = 4096
limit_request_field_size = 8300
limit_request_fields = 64


class Worker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """Threads, and an end to connections that send so slowly that they would keep one for ever."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._begun: dict[Any, float] = {}

    def handle(self, conn: Any) -> Any:
        self._begun[conn] = time.monotonic()
        try:
            return super().handle(conn)
        finally:
            self._begun.pop(conn, None)

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        super().wait_for_and_dispatch_events(timeout)
        oldest = time.monotonic() - self.cfg.timeout
        for conn, begun in list(self._begun.items()):
            if begun < oldest:
                # The thread reads an end where it waited for more; an answer can still be written.
                with contextlib.suppress(OSError):
                    conn.sock.shutdown(socket.SHUT_RD)


def on_starting(_server: Any) -> None:
    """Series begin at 0 with the server; what earlier processes left would be added up with them."""
    METRICS_DIRECTORY.mkdir(parents=True, exist_ok=True, mode=0o700)
    for left in METRICS_DIRECTORY.glob("*.db"):
        left.unlink()
