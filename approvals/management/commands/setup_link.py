"""`setup_link`: print a one-time link for the first admin, an invited human or a recovery."""

from argparse import ArgumentTypeError
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from django.conf import settings
from django.core.management.base import CommandError, CommandParser
from django.utils import timezone

from agentauth.protocol.encoding import timestamp
from approvals.models import Recovery
from approvals.services.recovery import create_recovery_link, start_recovery
from approvals.services.setup_and_sign_in import SetupLink, create_setup_link, owner_exists
from audit.management.base_commands import OperatorCommand, operator_of
from registry.models import Human
from registry.roles import Role, role_named


class Command(OperatorCommand):
    help = (
        "Print a one-time link for the first admin; with --email, for an invited human; with "
        "--recover, start the recovery of an account, and print the link once the recovery is "
        "ready."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--email", type=_address, help="invite the human with this address")
        parser.add_argument(
            "--recover",
            type=_address,
            metavar="EMAIL",
            help="start the recovery of the human with this address, or print its link once the "
            "recovery is ready",
        )
        parser.add_argument(
            "--stolen",
            action="store_true",
            help="with --recover: the account is suspended, and an administrator decides on the "
            "pages",
        )
        parser.add_argument(
            "--role",
            choices=[str(role) for role in Role],
            help="with --email: the invited human becomes an administrator with this role",
        )
        parser.add_argument(
            "--first-start", action="store_true", help="print nothing if there is an admin already"
        )

    def act(self, **options: Any) -> Mapping[str, Any]:
        if options["first_start"] and owner_exists():
            return {}
        link = _recover(options) if options["recover"] else _make_link(options)
        if isinstance(link, Recovery):
            return {
                "case": link.case,
                "ready_at": timestamp(link.ready_at) if link.ready_at else None,
            }
        return {"url": link.url, "expires_at": timestamp(link.expires_at)}

    def lines(self, result: Mapping[str, Any], options: Mapping[str, Any]) -> Iterator[str]:
        if not result:
            return
        if "url" not in result:
            yield from _describe_recovery(result, options)
            return
        end = datetime.fromisoformat(result["expires_at"])
        until = f"{end:%H:%M} UTC"
        if who := options["recover"] or options["email"]:
            yield (
                f"One-time link for {who}, valid until {end:%d %B %Y}, {until}. It creates a "
                "passkey:"
            )
            yield f"  {result['url']}"
        else:
            yield f"Open this link once, until {until}, and create your passkey:"
            yield f"  {result['url']}"
            yield f"To create a new link: {_elsewhere()}{settings.COMMAND} setup_link"


def _elsewhere() -> str:
    """The setting to type before the command, if `make run` was given another address.

    In a shell without it, the command would refuse to make a link for the usual one.
    """
    if settings.DEVELOPMENT and settings.PUBLIC_URL != settings.DEVELOPMENT_URL:
        return f"PUBLIC_URL={settings.PUBLIC_URL} "
    return ""


def _address(text: str) -> str:
    """The address, which must not be empty. Raises ArgumentTypeError.

    A script whose variable is unset must not get a link for the first admin.
    """
    if not text:
        raise ArgumentTypeError("an e-mail address is missing")
    return text


def _make_link(options: dict[str, Any]) -> SetupLink:
    if options["stolen"]:
        raise CommandError("--stolen can only be used with --recover.")
    if options["role"] and not options["email"]:
        raise CommandError("--role can only be used with --email: the first admin is an owner.")
    return create_setup_link(
        email=options["email"] or "",
        role=role_named(options["role"]),
        actor=operator_of(options),
        now=timezone.now(),
    )


def _recover(options: dict[str, Any]) -> SetupLink | Recovery:
    """A link for the open recovery, or a new recovery, which has to wait."""
    now, actor = timezone.now(), operator_of(options)
    if options["email"] or options["role"]:
        raise CommandError(
            "--recover is for an account that exists: it cannot be combined with --email or --role."
        )
    human = Human.objects.filter(email__iexact=options["recover"]).first()
    if human is None:
        raise CommandError("No account has this address.")
    row = Recovery.objects.open(now).filter(human=human).first()
    case = Recovery.Case.STOLEN if options["stolen"] else Recovery.Case.LOST
    if row is None:
        return start_recovery(human=human, case=case, admin=None, actor=actor, now=now)
    if row.case != case:
        raise CommandError(
            f"A recovery (passkey {row.case}) is in progress. To start another one, first have an "
            "administrator or the person cancel it."
        )
    return create_recovery_link(recovery=row, admin=None, actor=actor, now=now)


def _describe_recovery(result: Mapping[str, Any], options: Mapping[str, Any]) -> Iterator[str]:
    stolen = " --stolen" if options["stolen"] else ""
    if result["ready_at"]:
        ready = datetime.fromisoformat(result["ready_at"])
        yield (
            f"Recovery of {options['recover']} started. It is ready on {ready:%d %B %Y, %H:%M} UTC."
        )
    else:
        yield (
            f"Recovery of {options['recover']} started. An administrator must approve it at "
            f"{settings.PUBLIC_URL}/recoveries/"
        )
    yield (
        f"Then run this to print the link: {settings.COMMAND} setup_link --recover "
        f"{options['recover']}{stolen}"
    )
