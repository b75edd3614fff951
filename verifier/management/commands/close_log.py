"""`close_log`: end the log before a planned restore, so that its copies outside are complete.

Without the closing event, something may have been committed after the last copy.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.utils import timezone

from audit.management.base_commands import OPERATOR, JsonCommand, operator_name
from verifier.services.closing_before_restore import close_history

_QUESTION = (
    "From now on, this database answers no calls, because a backup is about to replace it. Close "
    "it?"
)


class Command(JsonCommand):
    help = "Close this database before a planned restore. Read docs/restore.md first."
    # This command holds the database, and must be able to run again after a failure.
    checks_hold = False

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--operator",
            required=True,
            help="the name of the person who decides; recorded in the log",
        )
        parser.add_argument("--yes", action="store_true", help="do not ask for confirmation")

    def act(self, **options: Any) -> Mapping[str, Any]:
        operator = operator_name(options)
        if not options["yes"] and not self.agrees(_QUESTION):
            raise CommandError(
                "Nothing was changed, because the answer was not yes. Answer yes, or pass --yes."
            )
        return {"size": close_history(operator=operator, actor=OPERATOR, clock=timezone.now)}

    def lines(self, result: Mapping[str, Any], options: Mapping[str, Any]) -> Iterator[str]:
        yield (
            f"Closed after {result['size']} events, and all of them are in the external store. "
            "Put the backup in place now."
        )
