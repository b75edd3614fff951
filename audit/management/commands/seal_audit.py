"""`manage.py seal_audit`: number every event that waits for its place in the log."""

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandParser
from django.utils import timezone

from audit.services import seal_audit


class Command(BaseCommand):
    help = "Number and link every recorded event that is still waiting."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, *args: Any, **options: Any) -> None:
        numbered = seal_audit(now=timezone.now())
        self.stdout.write(
            json.dumps({"numbered": numbered}) if options["json"] else f"Numbered {numbered} events."
        )
