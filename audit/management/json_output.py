"""How commands speak: lines for people, or with `--json` one JSON object on stdout; what they refuse is one clear line."""

import json
import os
import pwd
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import InterfaceError, OperationalError, ProgrammingError
from django.utils.module_loading import import_string

from agentauth.protocol.errors import AgentAuthError, TemporarilyUnavailableError
from agentauth.protocol.names import printable
from audit.services import Actor

# The actor of commands that enlarge nothing; the shell's own records say who ran them.
OPERATOR = Actor("system", "command")
# What the log's column holds, less `command:`.
_MAX_OPERATOR = 56


def _told(error: AgentAuthError) -> str:
    """What the operator is told: where a dependency fails, its own error, which callers are not told."""
    cause = error.__cause__ if isinstance(error, TemporarilyUnavailableError) else None
    return str(cause).partition("\n")[0] if cause else error.description


class JsonCommand(BaseCommand):
    """A command that calls one service and prints what it answers."""

    # A command that only looks is let through; one that mends what COMMAND_GUARD refuses is stopped by a held database alone.
    guarded = True
    mends = False

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            if self.guarded:
                import_string(settings.COMMAND_GUARD)(mends=self.mends)
            result = self.act(**options)
            lines = [json.dumps(result)] if options["json"] else list(self.lines(result, options))
        except AgentAuthError as error:
            raise CommandError(printable(_told(error))) from error
        except UnicodeEncodeError as error:
            # A shell passes bytes; those that are no UTF-8 meet the database as halves of characters.
            raise CommandError("An argument is not text in UTF-8.") from error
        except (OperationalError, ProgrammingError, InterfaceError) as error:
            said = str(error).partition("\n")[0].rstrip(".")
            raise CommandError(
                f"The database: {said}. Is it up, and migrated (`{settings.OWNER_COMMAND} migrate`)?"
            ) from error
        for line in lines:
            # Names in it are of agents and of service providers.
            self.stdout.write(printable(line))

    def tell(self, line: str, *, ending: str = "\n") -> None:
        """One line for the operator, on stderr, since stdout carries the result."""
        self.stderr.write(printable(line), str, ending=ending)

    def agrees(self, *question: str) -> bool:
        """Whether the operator answers yes to these lines. Without an answer (no terminal), they have not agreed."""
        *lines, last = question
        for line in lines:
            self.tell(line)
        self.tell(f"{last} [yes/no] ", ending="")
        self.stderr.flush()
        return sys.stdin.readline().strip() == "yes"

    def act(self, **options: Any) -> Mapping[str, Any]:
        """Do the work; the answer's members are part of the contract (docs/protocol.md section 12)."""
        raise NotImplementedError

    def lines(self, result: Mapping[str, Any], options: Mapping[str, Any]) -> Iterator[str]:
        """The same for people."""
        for name, value in result.items():
            yield f"{name}: {value}"


class OperatorCommand(JsonCommand):
    """A command that enlarges what an agent, a person or a service provider can do: its events name who ran it."""

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--operator", help="the name of the person who decides; recorded in the log (default: the user)"
        )


def operator_of(options: Mapping[str, Any]) -> Actor:
    """The actor of the events of an OperatorCommand. Raises CommandError for an empty or unfit name.

    It is not proved: a user of the shell could give another name, or write into the database.
    """
    given = options["operator"]
    name = (_user() if given is None else given).strip()
    if not name or len(name) > _MAX_OPERATOR or not name.isprintable():
        raise CommandError(
            f"--operator must be the name of the person who decides, 1 to {_MAX_OPERATOR} characters on one line."
        )
    return Actor("system", f"command:{name}")


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        # A container's user often has no name.
        return str(os.getuid())
