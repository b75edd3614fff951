"""`continue_after_restore`: this database, which was set back, is the registry's history from now on."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.utils import timezone

from approvals.services.continuing import continue_after_restore
from audit.management.json_output import OPERATOR, JsonCommand

_QUESTION = (
    "Sessions and codes end, requests are withdrawn, and every grant waits until its person signs again.\n"
    "Events after the backup are lost to this registry. This cannot be undone. Continue? [yes/no] "
)


class Command(JsonCommand):
    help = "Go on with a database that was restored from a backup. Read docs/restore.md first."
    guarded = False

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--operator", required=True, help="who decides; it stands in the log")
        parser.add_argument("--yes", action="store_true", help="do not ask")
        parser.add_argument(
            "--undetected",
            action="store_true",
            help="a backup was restored although nothing outside is newer than the database",
        )

    def act(self, **options: Any) -> Mapping[str, Any]:
        if not options["operator"].strip():
            raise CommandError("Name the operator who decides: it stands in the log.")
        if not options["yes"] and not self._agreed():
            raise CommandError("Nothing was changed.")
        done = continue_after_restore(
            operator=options["operator"],
            undetected=options["undetected"],
            actor=OPERATOR,
            now=timezone.now(),
        )
        return asdict(done)

    def _agreed(self) -> bool:
        # Not on stdout, which is the answer's; and where nobody can say anything, nobody agreed.
        self.stderr.write(_QUESTION, str, ending="")
        self.stderr.flush()
        return sys.stdin.readline().strip() == "yes"

    def lines(self, result: Mapping[str, Any], options: Mapping[str, Any]) -> Iterator[str]:
        yield (
            f"The log goes on as {result['log']} after {result['size']} events. {result['suspended']} grants wait for a new"
            f" signature, {result['withdrawn']} requests were withdrawn, {result['ended_again']} endings were done again."
        )
        yield "The verifier decides again in about ten seconds. Run manage.py verify_audit now."
