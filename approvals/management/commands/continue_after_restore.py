"""`continue_after_restore`: make this restored database the registry's history from now on."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from django.conf import settings
from django.core.management.base import CommandError, CommandParser
from django.utils import timezone

from approvals.services.continue_after_restore import continue_after_restore
from audit.management.base_commands import OPERATOR, JsonCommand

_QUESTION = (
    (
        "Sessions and codes end, requests are withdrawn, and every grant waits until its person "
        "signs again."
    ),
    "Events after the backup are lost to this registry. This cannot be undone. Continue?",
)


class Command(JsonCommand):
    help = "Continue with a database that was restored from a backup. Read docs/restore.md first."
    guarded = False

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
        if not options["operator"].strip():
            raise CommandError(
                "--operator is empty: give the name of the person who decides. It is recorded "
                "in the log."
            )
        if not options["yes"] and not self.agrees(*_QUESTION):
            raise CommandError(
                "Nothing was changed, because the answer was not yes. Answer yes, or pass --yes."
            )
        done = continue_after_restore(
            operator=options["operator"],
            undetected=options["undetected"],
            actor=OPERATOR,
            now=timezone.now(),
        )
        return asdict(done)

    def lines(self, result: Mapping[str, Any], options: Mapping[str, Any]) -> Iterator[str]:
        yield (
            f"The log continues as {result['log']} after {result['size']} events. "
            f"{result['suspended']} grants wait for a new"
            f" signature, {result['withdrawn']} requests were withdrawn, "
            f"{result['ended_again']} endings were repeated."
        )
        yield (
            f"The verifier decides again in about ten seconds. Run `{settings.COMMAND} "
            "verify_audit --full` now."
        )
