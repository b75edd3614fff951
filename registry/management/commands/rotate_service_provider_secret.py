"""`rotate_service_provider_secret SLUG`: add a secret; `--end-previous` ends the older ones."""

from collections.abc import Mapping
from typing import Any

from django.core.management.base import CommandParser
from django.utils import timezone

from audit.management.base_commands import OperatorCommand, operator_of
from registry.services.service_providers import (
    end_previous_secrets,
    find_any_service_provider,
    rotate_secret,
)


class Command(OperatorCommand):
    help = "Create another secret. The current one stays valid until --end-previous ends it."

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("service_provider", help="slug or id")
        parser.add_argument(
            "--end-previous",
            action="store_true",
            help="create none; end every secret but the newest",
        )

    def act(self, **options: Any) -> Mapping[str, Any]:
        found, now = find_any_service_provider(options["service_provider"]), timezone.now()
        actor = operator_of(options)
        answer = {"client_id": str(found.id), "slug": found.slug}
        if options["end_previous"]:
            ended = end_previous_secrets(service_provider=found, actor=actor, now=now)
            return answer | {"secrets_ended": ended}
        secret = rotate_secret(service_provider=found, actor=actor, now=now)
        return answer | {"client_secret": secret}
