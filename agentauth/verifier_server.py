"""How gunicorn serves the lean verifier: `gunicorn -c python:agentauth.verifier_server agentauth.asgi:application`."""

import gc
from typing import Any

from agentauth.web_server import *  # noqa: F403
from agentauth.web_server import on_starting, workers  # noqa: F401

worker_class = "asgi"
threads = 1
worker_connections = 1024
asgi_loop = "uvloop"
asgi_lifespan = "on"
pre_request = None  # type: ignore[assignment]
del pre_request


def post_worker_init(_worker: Any) -> None:
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)
