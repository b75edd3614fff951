"""`manage.py grant_serving_role`: give the role in DATABASE_URL exactly the rights to serve.

Run it as the database owner after `migrate`.
"""

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from django.conf import settings
from django.core.management.base import CommandError

from audit.db.role_granting import RoleError, grant_serving_role, temporary_left
from audit.management.base_commands import JsonCommand


class Command(JsonCommand):
    help = (
        "Grant the role in DATABASE_URL the rights to serve; run with DATABASE_OWNER_URL, after "
        "migrate."
    )
    checks_settings = checks_hold = False

    def act(self, **options: Any) -> Mapping[str, Any]:
        role = unquote(urlsplit(settings.DATABASE_URL).username or "")
        try:
            tables = grant_serving_role(role)
        except RoleError as error:
            raise CommandError(str(error)) from error
        if warning := temporary_left(role):
            self.tell(warning)
        return {"role": role, "tables": tables}

    def lines(self, result: Mapping[str, Any], options: Mapping[str, Any]) -> Iterator[str]:
        yield (
            f"{result['role']} may serve {len(result['tables'])} tables and cannot change what "
            "was recorded."
        )
