"""`setup_link`: prints a one-time link for the first admin, for an invited human, or for one who lost their passkeys."""

from argparse import ArgumentTypeError
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from django.conf import settings
from django.core.management.base import CommandError, CommandParser
from django.utils import timezone

from agentauth.protocol.encoding import timestamp
from approvals.services.people import SetupLink, admin_exists, create_setup_link
from approvals.services.recovery import create_recovery_link
from audit.management.json_output import OperatorCommand, operator_of
from registry.models import Human


class Command(OperatorCommand):
    help = (
        "Print a one-time link for the first admin; with --email, for an invited human; with --recover, for one "
        "who lost their passkeys."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--email", type=_address, help="invite the human with this address")
        parser.add_argument(
            "--recover",
            type=_address,
            metavar="EMAIL",
            help="recover the human with this address: their sessions end and their grants wait to be signed anew",
        )
        parser.add_argument("--admin", action="store_true", help="the invited human becomes an admin")
        parser.add_argument(
            "--first-start", action="store_true", help="say nothing where an admin exists already"
        )

    def act(self, **options: Any) -> Mapping[str, Any]:
        if options["first_start"] and admin_exists():
            return {}
        link = _made(options)
        return {"url": link.url, "expires_at": timestamp(link.expires_at)}

    def lines(self, result: Mapping[str, Any], options: Mapping[str, Any]) -> Iterator[str]:
        if not result:
            return
        end = datetime.fromisoformat(result["expires_at"])
        until = f"{end:%H:%M} UTC"
        if who := options["recover"] or options["email"]:
            yield f"For {who}, to open once, until {end:%d %B %Y}, {until}, and make a passkey:"
            yield f"  {result['url']}"
        else:
            yield f"Open this link once, until {until}, and make your passkey:"
            yield f"  {result['url']}"
            yield f"A new one: {settings.COMMAND} setup_link"


def _address(text: str) -> str:
    """Not empty: a script whose variable was empty did not mean the first admin. Raises ArgumentTypeError."""
    if not text:
        raise ArgumentTypeError("an e-mail address is missing")
    return text


def _made(options: dict[str, Any]) -> SetupLink:
    now = timezone.now()
    if not options["recover"]:
        return create_setup_link(
            email=options["email"] or "", is_staff=options["admin"], actor=operator_of(options), now=now
        )
    if options["email"] or options["admin"]:
        raise CommandError("--recover is for an account that exists: it goes without --email and --admin.")
    human = Human.objects.filter(email__iexact=options["recover"]).first()
    if human is None:
        raise CommandError("Nobody has this address.")
    return create_recovery_link(human=human, actor=operator_of(options), now=now)
