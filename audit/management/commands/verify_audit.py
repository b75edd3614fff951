"""`manage.py verify_audit`: prove the stored log, or name the first place where it contradicts itself."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from audit.management.json_output import JsonCommand
from audit.models import QueueEntry
from audit.verification import verify_log


class Command(JsonCommand):
    help = "Prove the audit log; exit 1 and name the place where it was changed."
    whole = False

    def handle(self, *args: Any, **options: Any) -> None:
        super().handle(*args, **options)
        if not self.whole:
            sys.exit(1)

    def act(self, **options: Any) -> Mapping[str, Any]:
        verdict = verify_log()
        self.whole = verdict.ok
        return asdict(verdict)

    def lines(self, result: Mapping[str, Any], options: Mapping[str, Any]) -> Iterator[str]:
        if result["ok"]:
            yield (
                f"The log is whole: {result['tree_size']} events, root {result['root_hash']}; "
                f"{QueueEntry.objects.count()} more wait for their number."
            )
        else:
            yield (
                f"THE LOG WAS TAMPERED WITH at {result['first_bad']}. {result['problem']} The {result['tree_size']} "
                "events before are whole. Keep the database as it is, and compare it with a backup from before the "
                "change."
            )
