"""`manage.py disable_key KID`: refuse everything a key signed, at once and for good."""

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone

from agentauth.protocol.errors import AgentAuthError
from audit.services import Actor
from kms.services import disable_key


class Command(BaseCommand):
    help = "Refuse everything a key signed, from now on and for good: it may be known to someone else."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("kid")
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            key = disable_key(kid=options["kid"], actor=Actor("system", "disable_key"), now=timezone.now())
        except AgentAuthError as error:
            raise CommandError(error.description) from error
        except UnicodeEncodeError as error:
            raise CommandError("An argument is not text in UTF-8.") from error
        if options["json"]:
            self.stdout.write(json.dumps({"kid": key.kid, "purpose": key.purpose, "state": key.state}))
        else:
            self.stdout.write(f"Disabled the {key.purpose} key {key.kid}.")
