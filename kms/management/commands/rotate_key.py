"""`manage.py rotate_key PURPOSE [--uri URI]`: publish a purpose's first or next signing key."""

from collections.abc import Iterator, Mapping
from typing import Any

from django.core.management.base import CommandParser
from django.utils import timezone

from agentauth.protocol.encoding import timestamp
from audit.management.base_commands import OPERATOR, JsonCommand
from kms.models import Key
from kms.services import rotate_key


class Command(JsonCommand):
    help = "Publish the next signing key of a purpose; it signs by itself about two minutes later."

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("purpose", choices=Key.Purpose.values)
        parser.add_argument("--uri", help="an existing key, as scheme:address (docs/keys.md)")
        parser.add_argument(
            "--unintroduced",
            action="store_true",
            help="the current key can no longer sign: publish the next without its introduction",
        )

    def act(self, **options: Any) -> Mapping[str, Any]:
        key = rotate_key(
            purpose=options["purpose"],
            actor=OPERATOR,
            now=timezone.now(),
            uri=options["uri"],
            introduced=not options["unintroduced"],
        )
        return {"kid": key.kid, "purpose": key.purpose, "active_from": timestamp(key.active_from)}

    def lines(self, result: Mapping[str, Any], options: Mapping[str, Any]) -> Iterator[str]:
        yield (
            f"Published the {result['purpose']} key {result['kid']}. It signs from "
            f"{result['active_from']} on."
        )
