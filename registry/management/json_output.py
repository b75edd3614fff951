"""How the registry's commands speak: lines for people, or with `--json` one JSON object on stdout."""

import json
from collections.abc import Mapping
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from agentauth.protocol.errors import AgentAuthError
from audit.services import Actor

# Whoever may run commands here is the operator; the shell's own records say who that was.
OPERATOR = Actor("system", "command")


class JsonCommand(BaseCommand):
    """A command that calls one service and prints what it answers."""

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            result = self.act(**options)
        except AgentAuthError as error:
            raise CommandError(error.description) from error
        except UnicodeEncodeError as error:
            # A shell passes bytes; those that are no UTF-8 meet the database as halves of characters.
            raise CommandError("An argument is not text in UTF-8.") from error
        if options["json"]:
            self.stdout.write(json.dumps(result))
        else:
            for name, value in result.items():
                self.stdout.write(f"{name}: {value}")

    def act(self, **options: Any) -> Mapping[str, Any]:
        """Do the work; the answer's members are part of the contract (docs/protocol.md section 12)."""
        raise NotImplementedError
