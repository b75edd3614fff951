"""`manage.py grant_verifier_role ROLE`: give ROLE the rights for verify, batch and introspect only.

Run it as the database owner after `migrate`.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from django.core.management.base import CommandError, CommandParser

from audit.db.role_granting import RoleError, grant_verifier_role, temporary_left
from audit.management.base_commands import JsonCommand


class Command(JsonCommand):
    help = (
        "Grant ROLE the rights of the verifier's processes; run with DATABASE_OWNER_URL, after "
        "migrate."
    )
    checks_settings = checks_hold = False

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("role", help="the role in the DATABASE_URL of the verifier's processes")

    def act(self, **options: Any) -> Mapping[str, Any]:
        role = options["role"]
        try:
            tables = grant_verifier_role(role)
        except RoleError as error:
            raise CommandError(str(error)) from error
        if warning := temporary_left(role):
            self.tell(warning)
        return {"role": role, "tables": tables}

    def lines(self, result: Mapping[str, Any], options: Mapping[str, Any]) -> Iterator[str]:
        yield (
            f"{result['role']} may answer for the verifier and cannot change a grant, token, "
            "agent or key."
        )
