"""How gunicorn serves us, as its configuration: `python -m agentauth web`."""

import gc
from typing import Any

from agentauth.environment import number
from agentauth.serving import (
    child_exit,
    control_socket_disable,
    empty,
    forwarded_allow_ips,
    forwarder_headers,
    graceful_timeout,
    header_map,
    keepalive,
    limit_request_field_size,
    limit_request_fields,
    limit_request_line,
    loglevel,
    metrics_directory,
    post_worker_init,
    worker_connections,
    workers,
)

# What gunicorn finds here by its own names, from the one place where both servers have it.
__all__ = [
    "child_exit",
    "control_socket_disable",
    "forwarded_allow_ips",
    "forwarder_headers",
    "graceful_timeout",
    "header_map",
    "keepalive",
    "limit_request_field_size",
    "limit_request_fields",
    "limit_request_line",
    "loglevel",
    "post_worker_init",
    "worker_connections",
    "workers",
]
METRICS_DIRECTORY = metrics_directory("metrics")

# As in `verifier_server`: a process that takes the place of one that died has loaded everything.
preload_app = True
worker_class = "agentauth.receiving.Worker"
# Half of a process's connections may be sending, a quarter may wait for their next request.
threads = number("WEB_THREADS", 16, least=1, most=512)


def pre_request(_worker: Any, request: Any) -> None:
    """What the loop that received the request knows about it."""
    if request.unreader.last:
        request.force_close()
    # Whoever waits for `100 Continue` has had it, or hears a refusal instead; gunicorn would say it again.
    request._expected_100_continue = False  # noqa: SLF001  # there is no other switch


def worker_exit(_server: Any, _worker: Any) -> None:
    """In a process that ends: what it was told of decisions that wait in Redis, where the drainer finds it."""
    from django.db import connections

    from verifier.stores.told import TOLD

    try:
        TOLD.write_down()
    finally:
        connections.close_all()


def on_starting(_server: Any) -> None:
    """The application is loaded, and no process made yet: what lives for ever is not looked through again."""
    from agentauth.postgresql.base import answer_soon
    from agentauth.startup import check_start

    # Whoever calls waits for the answer: a database that hangs takes no thread for long.
    answer_soon()
    check_start()
    empty(METRICS_DIRECTORY)
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
