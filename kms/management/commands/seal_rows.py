"""`seal_rows`: seal rows once after an upgrade, later those of an earlier SECRET_KEY."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from django.core.management.base import CommandParser
from django.utils import timezone

from audit.management.base_commands import OperatorCommand, operator_of
from kms.seal_backfill import seal_rows


class Command(OperatorCommand):
    help = (
        "Seal the rows that grant a right. From then on, rows that this registry did not write "
        "grant nothing."
    )
    checks_settings = False

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--adopt",
            action="store_true",
            help="also seal, as they stand now, rows that this registry did not write: check each "
            "first",
        )

    def act(self, **options: Any) -> Mapping[str, Any]:
        return asdict(
            seal_rows(adopt=options["adopt"], actor=operator_of(options), now=timezone.now())
        )

    def lines(self, result: Mapping[str, Any], options: Mapping[str, Any]) -> Iterator[str]:
        for table, number in result["sealed"].items():
            yield f"{table}: sealed {number}"
        for table, rows in result["refused"].items():
            names = ", ".join(rows)
            yield f"{table}: this registry did not write {names}; they grant nothing"
        if not result["sealed"] and not result["refused"]:
            yield "Every row is sealed."
