"""`manage.py drop_audit_partitions`: drop fully archived months; needs the database owner."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.utils import timezone

from agentauth.protocol.errors import AgentAuthError
from audit.archive.segment_writing import prove_again
from audit.db.partition_dropping import DroppingError, drop_month, droppable_months
from audit.management.audit_store import the_store
from audit.management.base_commands import JsonCommand

KEEP_MONTHS = 12


class Command(JsonCommand):
    help = (
        "Drop old months of the log whose events are all in the archive; run with "
        "DATABASE_OWNER_URL."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--keep-months",
            type=int,
            default=KEEP_MONTHS,
            help="how many months before this one to keep",
        )

    def act(self, **options: Any) -> Mapping[str, Any]:
        dropped: list[dict[str, str | int]] = []
        prove = partial(prove_again, store=the_store())
        try:
            for month in droppable_months(keep_months=options["keep_months"]):
                done = drop_month(month=month, now=timezone.now(), prove=prove)
                dropped.append({"month": str(month), "events": done.events})
        except (DroppingError, AgentAuthError) as error:
            before = ", ".join(str(each["month"]) for each in dropped)
            raise CommandError(
                f"{error}{f' Dropped before that: {before}.' if before else ''}"
            ) from error
        return {"dropped": dropped}

    def lines(self, result: Mapping[str, Any], options: Mapping[str, Any]) -> Iterator[str]:
        for each in result["dropped"]:
            yield f"Dropped {each['month']}: {each['events']} events, which are all in the archive."
        if not result["dropped"]:
            yield "No month is old enough."
