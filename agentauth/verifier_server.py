"""How gunicorn serves the verifier by itself: `python -m agentauth verifier`.

It speaks http, behind a proxy of ours that holds the certificate and passes it three addresses (docs/operations.md).
"""

import gc
from typing import Any

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
METRICS_DIRECTORY = metrics_directory("verifier-metrics")

# Loading takes most of a second; forked from a server that has done so, a process that takes the place of one that died
# answers at once. What is loaded starts nothing: no thread, connection, loop or file (tests/faults/test_forking.py).
preload_app = True
worker_class = "agentauth.receiving_asgi.Worker"
# Named, so that a missing package stops the start and not the speed.
asgi_loop = "uvloop"
http_parser = "fast"
# New connections wait here while a process is busy for a moment.
backlog = 512
# A decision that was begun is finished, whoever hangs up meanwhile.
asgi_disconnect_grace_period = graceful_timeout


def on_starting(_server: Any) -> None:
    """The application is loaded, and no process made yet: what lives for ever is not looked through again.

    A request leaves no cycles behind worth mentioning, and a full collection stops every connection of a process for
    tens of milliseconds: it comes after so many objects more.
    """
    from agentauth.postgresql.base import answer_soon
    from agentauth.startup import check_start

    # Some of what is asked here Django answers, over a connection of its own.
    answer_soon()
    check_start("verifier")
    empty(METRICS_DIRECTORY)
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
