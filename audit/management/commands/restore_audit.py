"""`manage.py restore_audit`: re-insert archived events that are missing, proved by their leaves."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from django.core.management.base import CommandParser

from audit.archive.restoring import restore_audit
from audit.management.audit_store import the_store
from audit.management.base_commands import JsonCommand


class Command(JsonCommand):
    help = (
        "Insert archived events that are missing from the database; what is there stays unchanged."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--first", type=int, default=0, help="only segments from this leaf on")
        parser.add_argument("--end", type=int, help="only segments before this leaf")

    def act(self, **options: Any) -> Mapping[str, Any]:
        return asdict(restore_audit(store=the_store(), first=options["first"], end=options["end"]))

    def lines(self, result: Mapping[str, Any], options: Mapping[str, Any]) -> Iterator[str]:
        yield (
            f"Read {result['events']} events in {result['segments']} segments; "
            f"{result['restored']} were missing and were restored."
        )
