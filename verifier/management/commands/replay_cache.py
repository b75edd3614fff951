"""`replay_cache`: show the replay cache, and move it."""

from collections.abc import Mapping
from typing import Any

from django.conf import settings
from django.core.management.base import CommandParser
from django.utils import timezone

from agentauth.protocol.encoding import timestamp
from agentauth.protocol.errors import InvalidStateError
from audit.management.base_commands import OPERATOR, JsonCommand
from verifier.models import Home
from verifier.services.replay_epochs import configured_cache, end_epoch, read_or_create_row


class Command(JsonCommand):
    help = "Show the replay cache and its epoch; with --move-to, begin a new epoch in that cache."

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--move-to", choices=[str(kind) for kind in Home.Kind], help="the cache to move to"
        )

    def act(self, **options: Any) -> Mapping[str, Any]:
        row, _database_now = read_or_create_row()
        if options["move_to"] is not None:
            row = _leave_epoch(row, options["move_to"])
        return {
            "epoch": row.epoch,
            "kind": row.kind,
            "began_at": timestamp(row.began_at),
            "servers": row.servers,
            "leaving_at": None if row.leaving_at is None else timestamp(row.leaving_at),
            "leaving_for": row.leaving_for or None,
        }


def _leave_epoch(row: Home, for_kind: str) -> Home:
    if for_kind != configured_cache():
        raise InvalidStateError(
            f"REDIS_URL is {'' if settings.REDIS_URL else 'not '}set here: "
            f"{'unset' if settings.REDIS_URL else 'set'} it first."
        )
    left = end_epoch(
        epoch=row.epoch, for_kind=for_kind, reason="operator", actor=OPERATOR, now=timezone.now()
    )
    if not left:
        raise InvalidStateError(
            "A new epoch is about to begin already. Try again in a few seconds."
        )
    return read_or_create_row()[0]
