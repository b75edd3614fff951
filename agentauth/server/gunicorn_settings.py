"""Settings of both servers, by gunicorn's names: limits, trusted headers, metrics directory."""

import os
import signal
from pathlib import Path
from typing import Any

from agentauth.environment import number
from agentauth.server.orphans import end_with_parent

# What gunicorn reads in the modules that import all of this one.
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
    "worker_connections",
    "workers",
]

# Set before the application is loaded: its settings read the variable too.
os.environ.setdefault("WEB_CONCURRENCY", "2")
workers = number("WEB_CONCURRENCY", 2, least=1, most=512)
# Per process, below the usual limit of 1,024 open files.
worker_connections = 512
graceful_timeout = 30
# Seconds that an idle connection is kept. Longer than proxies keep theirs (nginx: 60 s): the proxy
# then hangs up first, and none of its requests meets a connection that we are closing.
keepalive = 75
loglevel = "warning"
# Unused; it would lie in the home directory.
control_socket_disable = True
# No header sets gunicorn's scheme or SCRIPT_NAME: agentauth/client_address.py reads what proxies
# report.
forwarded_allow_ips = ""
forwarder_headers = ""
# Drop header names with an underscore: WSGI cannot tell them from those with a hyphen.
header_map = "drop"
# Room for the longest token and proof (8 kB each), each in its own line, and for headers that
# proxies add.
limit_request_line = 4096
limit_request_field_size = 8300
limit_request_fields = 64


def metrics_directory(name: str) -> Path:
    """The metrics directory of a server: PROMETHEUS_MULTIPROC_DIR, else `name` in VAR_DIR.

    Sets the variable. Call it before the application is loaded: the metrics library reads it then.
    """
    var = os.environ.get("VAR_DIR") or str(Path(__file__).resolve().parents[2] / "var")
    return Path(os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", f"{var}/{name}"))


def empty(directory: Path) -> None:
    """Delete the files of earlier processes: the library would add them to this server's series."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    for left in directory.glob("*.db"):
        left.unlink()


def start_worker(worker: Any, process: str) -> None:
    """In each process of a server, once it has the application: `process` names its kind.

    It ends with gunicorn's master, or it would hold the port that a new master needs. By SIGKILL:
    killing the master is meant to end the whole server. Requests in progress are lost, as when a
    worker is killed.
    """
    from agentauth.observability import tracing
    from agentauth.observability.server_metrics import ServerCollector

    end_with_parent(worker.ppid, signal.SIGKILL)
    ServerCollector.serves, ServerCollector.certificate = True, worker.cfg.certfile or ""
    # After the fork: it starts a thread.
    tracing.start(process)


def child_exit(_server: Any, worker: Any) -> None:
    """Drop the gauges that described the ended process alone."""
    # Imported late: the library reads the metrics directory at import.
    from prometheus_client.multiprocess import mark_process_dead

    mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]  # the library's own
