"""Base classes of commands: text, or one JSON object with `--json`; a refusal is one clear line."""

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
from agentauth.protocol.untrusted_text import printable
from audit.services import Actor

# The actor of commands that extend no rights; the shell's own records say who ran them.
OPERATOR = Actor("system", "command")
# PostgreSQL's codes of lock_not_available and query_canceled: a time limit was reached.
_TIMED_OUT = frozenset({"55P03", "57014"})
# The log's column holds 64 characters; `command:` takes 8.
_MAX_OPERATOR = 56


def _operator_message(error: AgentAuthError) -> str:
    """The message for the operator, who also sees a failed dependency's own error."""
    cause = error.__cause__ if isinstance(error, TemporarilyUnavailableError) else None
    return str(cause).partition("\n")[0] if cause else error.description


class JsonCommand(BaseCommand):
    """A command that calls one service and prints its result."""

    # What COMMAND_GUARD refuses. A command that repairs one of them, or may run on any database,
    # switches that check off: another release or other settings than the installation's, and a
    # database that was set back.
    checks_settings = True
    checks_hold = True

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            if self.checks_settings or self.checks_hold:
                import_string(settings.COMMAND_GUARD)(
                    check_settings=self.checks_settings, check_hold=self.checks_hold
                )
            result = self.act(**options)
            lines = [json.dumps(result)] if options["json"] else list(self.lines(result, options))
        except AgentAuthError as error:
            raise CommandError(printable(_operator_message(error))) from error
        except UnicodeEncodeError as error:
            # A shell passes bytes; Python decodes invalid UTF-8 to lone surrogates, which cannot be
            # encoded.
            raise CommandError("Arguments must be text in UTF-8.") from error
        except (OperationalError, ProgrammingError, InterfaceError) as error:
            said = str(error).partition("\n")[0].rstrip(".")
            if getattr(error.__cause__, "sqlstate", None) in _TIMED_OUT:
                hint = "Other processes use what the command needs. Run it again."
            else:
                hint = f"Is it up, and migrated (`{settings.OWNER_COMMAND} migrate`)?"
            raise CommandError(f"The database: {said}. {hint}") from error
        for line in lines:
            self.say(line)

    def say(self, line: str) -> None:
        """Print one line of the result on stdout.

        Agents and service providers choose some of the names here, so escape control characters.
        """
        self.stdout.write(printable(line))

    def tell(self, line: str, *, ending: str = "\n") -> None:
        """Print one line for the operator on stderr, since stdout carries the result."""
        self.stderr.write(printable(line), str, ending=ending)

    def agrees(self, *question: str) -> bool:
        """Ask the operator; only `yes` agrees, and no answer (no terminal) does not."""
        *lines, last = question
        for line in lines:
            self.tell(line)
        self.tell(f"{last} [yes/no] ", ending="")
        self.stderr.flush()
        return sys.stdin.readline().strip() == "yes"

    def act(self, **options: Any) -> Mapping[str, Any]:
        """Do the work. The members of the result are a contract (docs/protocol.md section 12)."""
        raise NotImplementedError

    def lines(self, result: Mapping[str, Any], options: Mapping[str, Any]) -> Iterator[str]:
        """The result as lines of text."""
        for name, value in result.items():
            yield f"{name}: {value}"


class OperatorCommand(JsonCommand):
    """A command that extends someone's rights: its events name the operator who ran it."""

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--operator",
            help="the name of the person who decides; recorded in the log (default: the user)",
        )


def operator_of(options: Mapping[str, Any]) -> Actor:
    """The actor of the events of an OperatorCommand. Raises CommandError for an invalid name."""
    return Actor("system", f"command:{operator_name(options)}")


def operator_name(options: Mapping[str, Any]) -> str:
    """The name in `--operator`, or the user's. Raises CommandError if it is invalid.

    It is not authenticated: a shell user could give another one, or write to the database.
    """
    given = options["operator"]
    name = (_user() if given is None else given).strip()
    if not name or len(name) > _MAX_OPERATOR or not name.isprintable():
        raise CommandError(
            f"--operator must be the name of the person who decides, 1 to {_MAX_OPERATOR} "
            "characters on one line."
        )
    return name


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        # A container's user often has no name.
        return str(os.getuid())
