"""`setup_link`: prints a one-time link for the first admin, for an invited human, or for one who lost their passkeys."""

import json
import sys
from argparse import ArgumentTypeError
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone

from agentauth.protocol.encoding import timestamp
from agentauth.protocol.errors import AgentAuthError
from approvals.services.people import SetupLink, admin_exists, create_setup_link
from approvals.services.recovery import create_recovery_link
from audit.services import Actor
from registry.models import Human


class Command(BaseCommand):
    help = (
        "Print a one-time link for the first admin; with --email, for an invited human; with --recover, for one "
        "who lost their passkeys."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--email", type=_address, help="invite the human with this address")
        parser.add_argument(
            "--recover",
            type=_address,
            metavar="EMAIL",
            help="recover the human with this address: their sessions end and their grants wait to be signed anew",
        )
        parser.add_argument("--admin", action="store_true", help="the invited human becomes an admin")
        parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
        parser.add_argument(
            "--first-start", action="store_true", help="say nothing where an admin exists already"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if options["first_start"] and admin_exists():
            return
        try:
            link = _made(options)
        except AgentAuthError as error:
            raise CommandError(error.description) from error
        except UnicodeEncodeError as error:
            raise CommandError("An argument is not text in UTF-8.") from error
        if options["json"]:
            self.stdout.write(json.dumps({"url": link.url, "expires_at": timestamp(link.expires_at)}))
            return
        until = f"{link.expires_at:%H:%M} UTC"
        if who := options["recover"] or options["email"]:
            until = f"{link.expires_at:%d %B %Y}, {until}"
            self.stdout.write(f"For {who}, to open once, until {until}, and make a passkey:")
            self.stdout.write(f"  {link.url}")
            return
        self.stdout.write(f"Open this link once, until {until}, and make your passkey:")
        self.stdout.write(f"  {link.url}")
        self.stdout.write(f"A new one: {_python()} manage.py setup_link")


def _address(text: str) -> str:
    """Not empty: a script whose variable was empty did not mean the first admin. Raises ArgumentTypeError."""
    if not text:
        raise ArgumentTypeError("an e-mail address is missing")
    return text


def _made(options: dict[str, Any]) -> SetupLink:
    actor, now = Actor("system", "setup_link"), timezone.now()
    if not options["recover"]:
        return create_setup_link(
            email=options["email"] or "", is_staff=options["admin"], actor=actor, now=now
        )
    if options["email"] or options["admin"]:
        raise CommandError("--recover is for an account that exists: it goes without --email and --admin.")
    human = Human.objects.filter(email__iexact=options["recover"]).first()
    if human is None:
        raise CommandError("Nobody has this address.")
    return create_recovery_link(human=human, actor=actor, now=now)


def _python() -> str:
    """This Python as one would type it here: in a virtual environment plain `python` is often another, or none."""
    path = Path(sys.executable)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else sys.executable
