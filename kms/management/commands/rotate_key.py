"""`manage.py rotate_key PURPOSE`: publish the next signing key of a purpose, or make its first."""

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone

from agentauth.protocol.encoding import timestamp
from agentauth.protocol.errors import AgentAuthError
from audit.services import Actor
from kms.models import Key
from kms.services import rotate_key


class Command(BaseCommand):
    help = "Publish the next signing key of a purpose; it signs by itself about two minutes later."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("purpose", choices=Key.Purpose.values)
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            key = rotate_key(
                purpose=options["purpose"], actor=Actor("system", "rotate_key"), now=timezone.now()
            )
        except AgentAuthError as error:
            raise CommandError(error.description) from error
        starts = timestamp(key.active_from)
        if options["json"]:
            self.stdout.write(json.dumps({"kid": key.kid, "purpose": key.purpose, "active_from": starts}))
        else:
            self.stdout.write(f"Published the {key.purpose} key {key.kid}. It signs from {starts} on.")
