"""`manage.py ensure_keys`: make the first signing key of every purpose that has none; safe at every start."""

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone

from agentauth.protocol.errors import AgentAuthError
from audit.services import Actor
from kms.models import Key
from kms.services import ensure_key


class Command(BaseCommand):
    help = "Make the first signing key of every purpose that has none."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", help="print one JSON object: purpose to kid")

    def handle(self, *args: Any, **options: Any) -> None:
        actor, now = Actor("system", "ensure_keys"), timezone.now()
        try:
            kids = {
                purpose: ensure_key(purpose=purpose, actor=actor, now=now).kid
                for purpose in Key.Purpose.values
            }
        except AgentAuthError as error:
            raise CommandError(error.description) from error
        if options["json"]:
            self.stdout.write(json.dumps(kids))
        elif options["verbosity"]:
            for purpose, kid in kids.items():
                self.stdout.write(f"{purpose}: {kid}")
