"""Measures `manage.py verify_audit`, in full and resumed: `python -m benchmarks.verify_audit`.

A private PostgreSQL with a log of each of the sizes, written and numbered as the jobs do it, and
signed. Then a full check, and after a day's worth of new events one that resumes from it. Each runs
in its own process. Prints Markdown for benchmarks/README.md.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.log_growth import write_until
from benchmarks.system_under_test import ENV, machine
from tests import postgres
from tests.live import LiveRegistry

SIZES = (100_000, 1_000_000)
NEW = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--events", type=int, action="append", help="sizes of the log, in ascending order"
    )
    parser.add_argument(
        "--new", type=int, default=NEW, help="number of events that come between two checks"
    )
    given = parser.parse_args()
    print(f"{machine()}. {' '.join(sys.argv[1:])}\n", flush=True)
    print(
        "| events in the log | check | leaves checked | seconds | leaves/s "
        "|\n|---|---|---|---|---|",
        flush=True,
    )
    with (
        tempfile.TemporaryDirectory(prefix="agentauth-verify-") as folder,
        postgres.cluster() as url,
    ):
        registry = LiveRegistry(Path(folder), database_url=url, env=ENV)
        registry.prepare()
        registry.manage("ensure_keys")
        os.environ.update(registry.env)
        os.environ["DJANGO_SETTINGS_MODULE"] = "agentauth.settings"
        import django

        django.setup()
        ids = list[str]()
        for size in given.events or SIZES:
            write_until(size, ids)
            registry.manage("seal_audit")
            _measure(registry, "whole", "--full")
            write_until(len(ids) + given.new, ids)
            registry.manage("seal_audit")
            _measure(registry, "goes on")


def _measure(registry: LiveRegistry, name: str, *arguments: str) -> None:
    began = time.monotonic()
    found: dict[str, Any] = registry.manage("verify_audit", *arguments)
    seconds = time.monotonic() - began
    if not found["ok"] or not found["state_kept"]:
        raise RuntimeError(f"the check measured something else: {found}")
    leaves = (
        found["tree_size"] - found["checked_from"] + found["rechecked_to"] - found["rechecked_from"]
    )
    print(
        f"| {found['tree_size']:,} | {name} | {leaves:,} | {seconds:.1f} | "
        f"{leaves / seconds:,.0f} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
