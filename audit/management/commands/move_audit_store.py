"""`manage.py move_audit_store`: take the log's copies and archive along to the store that AUDIT_STORE names now."""

from collections.abc import Iterator, Mapping
from typing import Any

from django.core.management.base import CommandParser
from django.utils import timezone

from audit.management.json_output import OPERATOR, JsonCommand
from audit.moving import move_store


class Command(JsonCommand):
    help = "Copy the log's old store to the one AUDIT_STORE names, mark the old one as left, and go on there."

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        old = parser.add_mutually_exclusive_group(required=True)
        old.add_argument(
            "--from", dest="source", metavar="URI", help="the old store, as AUDIT_STORE named it"
        )
        old.add_argument("--lost", action="store_true", help="the old store is lost; the event says so")

    def act(self, **options: Any) -> Mapping[str, Any]:
        return move_store(source=options["source"], actor=OPERATOR, now=timezone.now())

    def lines(self, result: Mapping[str, Any], options: Mapping[str, Any]) -> Iterator[str]:
        if result["lost"]:
            yield (
                f"The log goes on in {result['to']}, with the checkpoints that the database has. What {result['from']} "
                "knew beyond them was not seen."
            )
        else:
            yield f"Copied {result['objects']} objects from {result['from']}; the log goes on in {result['to']}."
