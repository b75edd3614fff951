"""`create_service_provider NAME --audience URL`: a new service provider. Shows its secret once."""

from collections.abc import Mapping
from typing import Any

from django.core.management.base import CommandParser
from django.utils import timezone

from audit.management.base_commands import OperatorCommand, operator_of
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

    def act(self, **options: Any) -> Mapping[str, Any]:
        service_provider, secret = create_service_provider(
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
