"""`verifier_home`: where spent proofs and rates are kept, and a way to have that moved."""

from collections.abc import Mapping
from typing import Any

from django.conf import settings
from django.core.management.base import CommandParser
from django.utils import timezone

from agentauth.protocol.encoding import timestamp
from agentauth.protocol.errors import InvalidStateError
from audit.management.json_output import OPERATOR, JsonCommand
from verifier.models import Home
from verifier.services.home import leave, look


class Command(JsonCommand):
    help = "Show where the verifier keeps spent proofs and rates; with --leave-for, begin to move it."

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--leave-for", choices=[str(kind) for kind in Home.Kind], help="where to move")

    def act(self, **options: Any) -> Mapping[str, Any]:
        row, _database_now = look()
        if options["leave_for"] is not None:
            row = _left(row, options["leave_for"])
        return {
            "epoch": row.epoch,
            "kind": row.kind,
            "began_at": timestamp(row.began_at),
            "servers": row.servers,
            "leaving_at": None if row.leaving_at is None else timestamp(row.leaving_at),
            "leaving_for": row.leaving_for or None,
        }


def _left(row: Home, for_kind: str) -> Home:
    if for_kind == Home.Kind.REDIS and not settings.REDIS_URL:
        raise InvalidStateError("No REDIS_URL is set.")
    left = leave(epoch=row.epoch, for_kind=for_kind, reason="operator", actor=OPERATOR, now=timezone.now())
    if not left:
        raise InvalidStateError("The verifier is moving already.")
    return look()[0]
