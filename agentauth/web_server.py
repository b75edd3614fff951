"""How gunicorn serves us, as its configuration: `gunicorn -c python:agentauth.web_server agentauth.wsgi:application`."""

import os
from pathlib import Path
from typing import Any

# Before the application is loaded: settings and the metrics library read these from the environment.
os.environ.setdefault("WEB_CONCURRENCY", "2")
_var = os.environ.get("VAR_DIR") or str(Path(__file__).resolve().parent.parent / "var")
METRICS_DIRECTORY = Path(os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", f"{_var}/metrics"))

# gunicorn's own settings, by its names.
worker_class = "agentauth.receiving.Worker"
workers = int(os.environ["WEB_CONCURRENCY"])
threads = int(os.environ.get("WEB_THREADS", "16"))
# Of each process, below the 1,024 open files that are usual. Half may be sending, a quarter may wait for their next request.
worker_connections = 512
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


def pre_request(_worker: Any, request: Any) -> None:
    """What the loop that received the request knows about it."""
    if request.unreader.last:
        request.force_close()
    # Whoever waits for `100 Continue` has had it, or hears a refusal instead; gunicorn would say it again.
    request._expected_100_continue = False  # noqa: SLF001  # there is no other switch


def on_starting(_server: Any) -> None:
    """Series begin at 0 with the server; what earlier processes left would be added up with them."""
    METRICS_DIRECTORY.mkdir(parents=True, exist_ok=True, mode=0o700)
    for left in METRICS_DIRECTORY.glob("*.db"):
        left.unlink()
