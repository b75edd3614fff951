"""gunicorn's configuration of the web server: `python -m agentauth web`."""

import gc
from typing import Any

from agentauth.environment import number

# Settings that gunicorn reads here by name; both servers share them.
from agentauth.server.gunicorn_settings import *  # noqa: F403
from agentauth.server.gunicorn_settings import empty, metrics_directory, start_worker

METRICS_DIRECTORY = metrics_directory("metrics")

# As in `verifier_gunicorn`: a replacement for a dead process starts with everything loaded.
preload_app = True
worker_class = "agentauth.server.thread_worker.Worker"
# Threads of each process. Connections wait without one: half may be sending, a quarter idle.
threads = number("WEB_THREADS", 16, least=1, most=512)


def post_worker_init(worker: Any) -> None:
    """A process of this server is ready to serve."""
    start_worker(worker, "web")


def pre_request(_worker: Any, request: Any) -> None:
    """Tell the parser's request what the loop that received it knows."""
    if request.unreader.last:
        request.force_close()
    # The loop has already sent `100 Continue` or a refusal; gunicorn would send it again.
    request._expected_100_continue = False  # noqa: SLF001  # there is no other switch


def worker_exit(_server: Any, _worker: Any) -> None:
    """When a process ends: store which decisions in Redis it answered for, for the drainer."""
    from django.db import connections

    from agentauth.observability import tracing
    from verifier.stores.acknowledged_events import ACKNOWLEDGED

    try:
        ACKNOWLEDGED.save()
    finally:
        connections.close_all()
        tracing.stop()


def on_starting(_server: Any) -> None:
    """The application is loaded, nothing forked: keep what lives for ever out of collections."""
    from agentauth.observability import tracing
    from agentauth.postgresql.base import use_short_timeouts
    from agentauth.startup_checks import check_start

    # A caller waits for the answer, so a hanging database must not hold a thread for long.
    use_short_timeouts()
    check_start()
    empty(METRICS_DIRECTORY)
    tracing.load()
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
