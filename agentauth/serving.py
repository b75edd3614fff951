"""What our two servers tell gunicorn alike: limits, whom to believe, where metrics lie. By gunicorn's own names."""

import os
import signal
from pathlib import Path
from typing import Any

from agentauth.environment import number
from agentauth.orphans import end_with_parent

__all__ = [
    "child_exit",
    "control_socket_disable",
    "empty",
    "forwarded_allow_ips",
    "forwarder_headers",
    "graceful_timeout",
    "header_map",
    "keepalive",
    "limit_request_field_size",
    "limit_request_fields",
    "limit_request_line",
    "loglevel",
    "metrics_directory",
    "post_worker_init",
    "worker_connections",
    "workers",
]

# Before the application is loaded: settings read it from the environment too.
os.environ.setdefault("WEB_CONCURRENCY", "2")
workers = number("WEB_CONCURRENCY", 2, least=1, most=512)
# Of each process, below the 1,024 open files that are usual.
worker_connections = 512
graceful_timeout = 30
# Seconds that an idle connection is kept. Longer than proxies keep theirs (nginx: 60 s), so that it is they who hang up, and
# no request of theirs meets a connection that we are closing.
keepalive = 75
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


def metrics_directory(name: str) -> Path:
    """Where the metrics of one server's processes lie: as the environment says, else `name` in the state directory.

    The metrics library reads it from the environment, so this comes before the application is loaded.
    """
    var = os.environ.get("VAR_DIR") or str(Path(__file__).resolve().parent.parent / "var")
    return Path(os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", f"{var}/{name}"))


def empty(directory: Path) -> None:
    """Series begin at 0 with the server; what earlier processes left would be added up with them."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    for left in directory.glob("*.db"):
        left.unlink()


def post_worker_init(worker: Any) -> None:
    """A worker process ends with gunicorn's first process, since no new one could start while the worker holds the port.

    By SIGKILL: killing the first process is meant to end the whole server. Requests in progress are lost, as it is when a worker
    process is killed.
    """
    end_with_parent(worker.ppid, signal.SIGKILL)


def child_exit(_server: Any, worker: Any) -> None:
    """What a process said of itself alone ends with it."""
    # Late, since the library looks at its import where metrics lie.
    from prometheus_client.multiprocess import mark_process_dead

    mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]  # the library's own
