"""`change_service_provider SLUG --audience URL --allow ENTRY … --logo FILE`: change these."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.db import transaction
from django.utils import timezone

from agentauth.protocol.errors import InvalidRequestError
from audit.management.base_commands import OperatorCommand, operator_of
from registry.services.logo_encoding import MAX_UPLOAD, encode_logo
from registry.services.service_logos import propose_logo
from registry.services.service_providers import (
    change_allowed,
    change_audience,
    find_any_service_provider,
)


class Command(OperatorCommand):
    help = (
        "Change the audience of a service provider, or what agents may request there. Affected "
        "grants wait for a new signature. Or upload its logo."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("service_provider", help="slug or id")
        parser.add_argument(
            "--audience", help="the new absolute URL of its API, without final slash"
        )
        parser.add_argument(
            "--allow",
            nargs="*",
            action="extend",
            help="the complete new list, such as read:calendar write:calendar; without values, "
            "nothing is allowed",
        )
        parser.add_argument(
            "--logo",
            type=Path,
            help="a PNG, JPEG or WebP file, which an administrator then approves",
        )

    def act(self, **options: Any) -> Mapping[str, Any]:
        if all(options[name] is None for name in ("audience", "allow", "logo")):
            raise InvalidRequestError("Name what to change: --audience, --allow or --logo.")
        actor = operator_of(options)
        found = find_any_service_provider(options["service_provider"])
        logo = None if options["logo"] is None else encode_logo(_read(options["logo"]))
        suspended = 0
        now = timezone.now()
        with transaction.atomic():
            if options["audience"] is not None:
                suspended += change_audience(
                    service_provider=found, audience=options["audience"], actor=actor, now=now
                )
            if options["allow"] is not None:
                suspended += change_allowed(
                    service_provider=found, allowed=options["allow"], actor=actor, now=now
                )
            if logo is not None:
                propose_logo(service_provider=found, image=logo, actor=actor, now=now)
        return {
            "client_id": str(found.id),
            "slug": found.slug,
            "audience": found.audience,
            "allowed": found.allowed,
            "grants_suspended": suspended,
        }


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_UPLOAD + 1)
    except OSError as error:
        raise CommandError(f"--logo: cannot read {path}: {error.strerror}.") from error
