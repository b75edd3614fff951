"""The series of each scrape that describe a server of several processes: memory, certificate."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cryptography import x509
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

_KIB: Final = 1024


class ServerCollector(Collector):
    """The server whose process answers: all processes of this one's master."""

    # Whether this process is one of a server's; `jobs` and Celery have one process each.
    serves = False
    # The file of gunicorn's --certfile; empty if a proxy in front holds the certificate.
    certificate = ""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        if not self.serves:
            return
        sizes = [size for size in map(_memory, _processes(os.getppid())) if size is not None]
        yield GaugeMetricFamily(
            "agentauth_server_processes", "Processes that serve requests", value=len(sizes)
        )
        yield GaugeMetricFamily(
            "agentauth_server_memory_bytes",
            "Memory of these processes; what they share is counted once",
            value=sum(sizes),
        )
        if (end := _certificate_end(self.certificate)) is not None:
            yield GaugeMetricFamily(
                "agentauth_certificate_end_timestamp_seconds",
                "When the certificate ends that this server presents",
                value=end,
            )


def _processes(master: int) -> list[int]:
    try:
        children = Path(f"/proc/{master}/task/{master}/children").read_text().split()
    except OSError:
        # Only Linux has it.
        return [os.getpid()]
    return [int(each) for each in children]


def _memory(process: int) -> int | None:
    """The proportional set size in bytes; None if the process ended, or this is not Linux."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * _KIB for line in lines if line.startswith("Pss:")), None)


def _certificate_end(path: str) -> float | None:
    if not path:
        return None
    try:
        # Read each time, as by gunicorn for each connection: a renewed one needs no restart.
        found = x509.load_pem_x509_certificate(Path(path).read_bytes())
    except (OSError, ValueError):
        return None
    return found.not_valid_after_utc.timestamp()
