"""`python -m tests.campaign [COUNT [SEED]]`: run COUNT mutants on all cores, print the results."""

import argparse
import json
import os
import sys
import time

os.environ.setdefault("AGENTAUTH_TESTING", "1")
os.environ.setdefault("SECRET_KEY", "only-for-tests-0123456789-abcdefghijklmnopqrstuvwxyz")
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "agentauth.settings")

import django

django.setup()

from tests.campaign.engine import SHOWN, campaign, in_processes, timed  # noqa: E402 — it imports models


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    parser.add_argument("count", nargs="?", type=int, default=1_000_000)
    parser.add_argument("seed", nargs="?", type=int, default=0)
    parser.add_argument(
        "--json", action="store_true", help="one part of the whole, in this process alone"
    )
    asked = parser.parse_args()
    if asked.json:
        done = campaign(count=asked.count, seed=asked.seed)
        print(
            json.dumps(
                {"refused": done.refused, "accepted": done.accepted, "crashed": done.crashed}
            )
        )
        return 0
    began = time.monotonic()
    result = in_processes(count=asked.count, seed=asked.seed, processes=os.cpu_count() or 1)
    for fault in (result.accepted + result.crashed)[:SHOWN]:
        print(fault)
    print(timed(result, began))
    return 1 if result.accepted or result.crashed else 0


if __name__ == "__main__":
    sys.exit(main())
