"""A process that records an event for each line on stdin, and prints `ok`.

A line is the time of the event's id, in milliseconds.
"""

import sys
from datetime import UTC, datetime
from types import SimpleNamespace

import django


def main() -> None:
    django.setup()
    from django.db import transaction

    from audit import kinds, new_ids
    from audit.services import SYSTEM, record

    _say("ready")
    for told in sys.stdin:
        made = int(told) * 1_000_000
        vars(new_ids)["time"] = SimpleNamespace(time_ns=lambda at=made: at)
        with transaction.atomic():
            record(kind=kinds.REQUEST_REFUSED, actor=SYSTEM, at=datetime.now(UTC))
        _say("ok")


def _say(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
