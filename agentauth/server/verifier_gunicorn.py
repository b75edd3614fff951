"""gunicorn's configuration of the standalone verifier: `python -m agentauth verifier`.

It speaks http, behind a proxy of ours that holds the certificate and passes three addresses on
(docs/operations.md).
"""

import gc
from typing import Any

# Settings that gunicorn reads here by name; both servers share them.
from agentauth.server.gunicorn_settings import *  # noqa: F403
from agentauth.server.gunicorn_settings import (
    empty,
    graceful_timeout,
    metrics_directory,
    start_worker,
)

METRICS_DIRECTORY = metrics_directory("verifier-metrics")

# Loading takes most of a second. Forked from a loaded server, a replacement for a dead process
# answers at once. Loading starts nothing: no thread, connection, loop or file
# (tests/faults/test_forking.py).
preload_app = True
worker_class = "agentauth.server.loop_worker.Worker"
# Named, so that a missing package stops the start instead of slowing the server down.
asgi_loop = "uvloop"
http_parser = "fast"
# Connections that the kernel queues while a process is busy for a moment.
backlog = 512
# A decision that was begun is finished even if the client hangs up.
asgi_disconnect_grace_period = graceful_timeout


def post_worker_init(worker: Any) -> None:
    """A process of this server is ready to serve."""
    start_worker(worker, "verifier")


def worker_exit(_server: Any, _worker: Any) -> None:
    """When a process ends: export its last spans."""
    from agentauth.observability import tracing

    tracing.stop()


def on_starting(_server: Any) -> None:
    """The application is loaded, nothing forked: keep what lives for ever out of collections.

    A request leaves hardly any reference cycles, and a full collection stops every connection of a
    process for tens of milliseconds: so collect only after 50,000 new objects.
    """
    from agentauth.observability import tracing
    from agentauth.postgresql.base import use_short_timeouts
    from agentauth.startup_checks import check_start

    # Django answers some requests here, over its own connection.
    use_short_timeouts()
    check_start("verifier")
    empty(METRICS_DIRECTORY)
    tracing.load()
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
