"""`manage.py move_audit_store`: copy checkpoints and archive to the store in AUDIT_STORE."""

from collections.abc import Iterator, Mapping
from typing import Any

from django.conf import settings
from django.core.management.base import CommandParser
from django.utils import timezone

from audit.archive.store_move import move_store
from audit.management.base_commands import OPERATOR, JsonCommand


class Command(JsonCommand):
    help = (
        "Copy the log's old store to the one AUDIT_STORE names, mark the old one as left, and "
        "continue in the new one."
    )
    # After AUDIT_STORE changed, the history check fails until this has run. It checks both stores
    # itself.
    checks_settings = False

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        old = parser.add_mutually_exclusive_group(required=True)
        old.add_argument(
            "--from", dest="source", metavar="URI", help="the old store, as AUDIT_STORE named it"
        )
        old.add_argument(
            "--lost", action="store_true", help="the old store is lost; the event says so"
        )

    def act(self, **options: Any) -> Mapping[str, Any]:
        return move_store(source=options["source"], actor=OPERATOR, now=timezone.now())

    def lines(self, result: Mapping[str, Any], options: Mapping[str, Any]) -> Iterator[str]:
        if result["lost"]:
            yield (
                f"The log continues in {result['to']}, with the checkpoints that the database "
                "has. Anything else in "
                f"{result['from']} was not read: when it can be read again, run"
                f" `{settings.COMMAND} verify_audit --store URI`."
            )
        else:
            yield (
                f"Copied {result['objects']} objects from {result['from']}; the log continues in "
                f"{result['to']}."
            )
