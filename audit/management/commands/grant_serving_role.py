"""`manage.py grant_serving_role`: after `migrate`, as the owner, let the role of DATABASE_URL serve and no more."""

import json
from typing import Any
from urllib.parse import unquote, urlsplit

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from audit.roles import RoleError, grant_serving_role


class Command(BaseCommand):
    help = (
        "Grant the role named in DATABASE_URL what serving needs; run with DATABASE_OWNER_URL, after migrate."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, *args: Any, **options: Any) -> None:
        role = unquote(urlsplit(settings.DATABASE_URL).username or "")
        try:
            granted = grant_serving_role(role)
        except RoleError as error:
            raise CommandError(str(error)) from error
        if options["json"]:
            self.stdout.write(json.dumps({"role": role, "tables": granted}))
        else:
            self.stdout.write(f"{role} may serve {len(granted)} tables and change nothing that was recorded.")
