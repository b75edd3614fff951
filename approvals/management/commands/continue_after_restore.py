"""`continue_after_restore`: make this restored database the registry's history from now on."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from django.conf import settings
from django.core.management.base import CommandError, CommandParser
from django.utils import timezone

from approvals.services.continue_after_restore import continue_after_restore
from audit.management.base_commands import OPERATOR, JsonCommand, operator_name

_CONSEQUENCES = (
    "Sessions and codes end, requests are withdrawn, and every grant is suspended until its person "
    "signs again or, if the log was closed, an administrator releases it."
)
_QUESTION = "This registry loses all events after the backup. This cannot be undone. Continue?"


class Command(JsonCommand):
    help = "Continue with a database that was restored from a backup. Read docs/restore.md first."
    # A held database stops the other commands, and this one ends the hold.
    checks_hold = False

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--operator",
            required=True,
            help="the name of the person who decides; recorded in the log",
        )
        parser.add_argument("--yes", action="store_true", help="do not ask for confirmation")
        parser.add_argument(
            "--undetected",
            action="store_true",
            help="continue even though the restore was not detected",
        )

    def act(self, **options: Any) -> Mapping[str, Any]:
        operator = operator_name(options)
        if not options["yes"] and not self.agrees(_CONSEQUENCES, _QUESTION):
            raise CommandError(
                "Nothing was changed, because the answer was not yes. Answer yes, or pass --yes."
            )
        done = continue_after_restore(
            operator=operator,
            undetected=options["undetected"],
            actor=OPERATOR,
            now=timezone.now(),
        )
        return asdict(done)

    def lines(self, result: Mapping[str, Any], options: Mapping[str, Any]) -> Iterator[str]:
        yield (
            f"The log continues as {result['log']} after {result['size']} events. "
            f"{result['suspended']} grants are suspended, {result['withdrawn']} requests were "
            f"withdrawn, {result['ended_again']} revocations and other endings after the backup "
            "were applied again."
        )
        yield (
            "Verifiers decide again in about ten seconds. Next, an owner of the registry signs the "
            f"new log on /admin/. Then run `{settings.COMMAND} verify_audit --full`: it names the "
            "break where the backup ended, and exits with 1."
        )
