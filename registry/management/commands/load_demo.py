"""`load_demo`: create the demo service provider. Development only.

Its id and secret go to var/demo/service_provider.json.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import CommandError, CommandParser
from django.utils import timezone

from agentauth.protocol.errors import InvalidClientError
from audit.management.base_commands import OperatorCommand, operator_of
from registry.models import ServiceProvider
from registry.services.provider_authentication import authenticate_service_provider
from registry.services.service_providers import (
    change_audience,
    create_service_provider,
    rotate_secret,
)

NAME = "Demo Service"
SLUG = "demo-service"
AUDIENCE = "http://127.0.0.1:8001"
ALLOWED = [
    "read:calendar",
    "write:calendar",
    "delete:calendar",
    "read:files",
    "write:files",
    "delete:files",
    "read:payments",
    "transact:payments",
]


class Command(OperatorCommand):
    help = "Create the demo service provider and store its secret, unless that is done already."

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--audience", default=AUDIENCE, help="the address of the demo service")

    def act(self, **options: Any) -> Mapping[str, Any]:
        if not settings.DEVELOPMENT:
            raise CommandError("load_demo is for development only.")
        actor = operator_of(options)
        path = settings.VAR_DIR / "demo" / "service_provider.json"
        found = ServiceProvider.objects.filter(slug=SLUG).first()
        kept = read_credentials(path)
        if found is None:
            found, secret = create_service_provider(
                name=NAME,
                audience=options["audience"],
                allowed=ALLOWED,
                actor=actor,
                now=timezone.now(),
            )
        elif kept is not None and kept["client_id"] == str(found.id) and works(kept):
            secret = kept["client_secret"]
        else:
            secret = rotate_secret(service_provider=found, actor=actor, now=timezone.now())
        if found.audience != options["audience"]:
            change_audience(
                service_provider=found,
                audience=options["audience"],
                actor=actor,
                now=timezone.now(),
            )
            found.refresh_from_db()
        credentials = {
            "client_id": str(found.id),
            "client_secret": secret,
            "slug": found.slug,
            "audience": found.audience,
            "registry_url": settings.PUBLIC_URL,
        }
        write_credentials(path, credentials)
        # The secret goes only to the file: a terminal's scrollback would keep it.
        return {"client_id": credentials["client_id"], "slug": found.slug, "file": str(path)}


def read_credentials(path: Path) -> dict[str, str] | None:
    """The credentials that an earlier run wrote; None if they are missing or broken."""
    try:
        kept = json.loads(path.read_text())
        return {name: str(kept[name]) for name in ("client_id", "client_secret")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def works(kept: Mapping[str, str]) -> bool:
    try:
        authenticate_service_provider(client_id=kept["client_id"], secret=kept["client_secret"])
    except InvalidClientError:
        return False
    return True


def write_credentials(path: Path, credentials: Mapping[str, str]) -> None:
    """Write the file in one step, and never readable by other users, not even for a moment."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_suffix(f".{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(dict(credentials), file, indent=1)
    draft.replace(path)
