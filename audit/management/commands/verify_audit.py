"""`manage.py verify_audit`: prove the stored log, or name the first place where it contradicts itself."""

import json
import sys
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from audit.models import QueueEntry
from audit.verification import verify_log


class Command(BaseCommand):
    help = "Prove the audit log; exit 1 and name the place where it was changed."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, *args: Any, **options: Any) -> None:
        verdict = verify_log()
        if options["json"]:
            self.stdout.write(json.dumps(asdict(verdict)))
        elif verdict.ok:
            self.stdout.write(
                f"The log is whole: {verdict.tree_size} events, root {verdict.root_hash}; "
                f"{QueueEntry.objects.count()} more wait for their number."
            )
        else:
            self.stdout.write(
                f"THE LOG WAS TAMPERED WITH at {verdict.first_bad}. {verdict.problem} The {verdict.tree_size} events "
                "before are whole. Keep the database as it is, and compare it with a backup from before the change."
            )
        if not verdict.ok:
            sys.exit(1)
