"""`create_service_provider NAME --audience URL`: a new service provider. Shows its secret once."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.utils import timezone

from agentauth.protocol.encoding import read_object
from audit.management.base_commands import OperatorCommand, operator_of
from registry.models import ServiceProvider
from registry.services.catalogues import create_with_catalogue
from registry.services.service_providers import create_service_provider


class Command(OperatorCommand):
    help = "Create a service provider. The secret is shown once and not kept."

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("name")
        parser.add_argument(
            "--audience", required=True, help="absolute URL of its API, without final slash"
        )
        parser.add_argument(
            "--allow",
            nargs="*",
            action="extend",
            default=[],
            help="such as read:calendar write:calendar; without values, nothing is allowed",
        )
        parser.add_argument(
            "--auditor", action="store_true", help="may read every event of the log"
        )
        parser.add_argument(
            "--require-nonce", action="store_true", help="proofs for it must carry a server nonce"
        )

        parser.add_argument(
            "--catalogue",
            type=Path,
            help="a JSON file with the service's own words, which an administrator then approves",
        )

    def act(self, **options: Any) -> Mapping[str, Any]:
        service_provider, secret = _create(
            options["catalogue"],
            name=options["name"],
            audience=options["audience"],
            allowed=options["allow"],
            is_auditor=options["auditor"],
            require_nonce=options["require_nonce"],
            actor=operator_of(options),
            now=timezone.now(),
        )
        return {
            "client_id": str(service_provider.id),
            "slug": service_provider.slug,
            "client_secret": secret,
        }


def _create(catalogue: Path | None, **provider: Any) -> tuple[ServiceProvider, str]:
    if catalogue is None:
        return create_service_provider(**provider)
    try:
        document = read_object(catalogue.read_bytes())
    except OSError as error:
        raise CommandError(f"--catalogue: cannot read {catalogue}: {error.strerror}.") from error
    return create_with_catalogue(document=document, **provider)
