"""`manage.py init_production VERIFIER_ROLE`: from an empty database to a registry that may start.

Run it as the database's owner. It checks the clock, database, Redis and store (E038 to E042 of
`check --deploy`) and does the steps E043, E044, E045 and E047. Every step may run again. Roles,
buckets and key services are made outside: the registry has no rights to make them.
"""

import io
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import CommandError, CommandParser
from django.db import DatabaseError, InterfaceError, connection

from agentauth.missing_installation_steps import (
    CANNOT_CREATE,
    first_line,
    is_migrated,
    may_create,
    redis_problem,
    store_problem,
)
from audit.management.base_commands import JsonCommand
from kms.models import Key
from verifier.services.host_clock_check import clock_problem


class Command(JsonCommand):
    help = "Check the services, migrate, grant rights, record the settings and make the keys."
    # Its steps record what these checks compare. `ensure_keys`, the last step, makes both checks.
    checks_settings = checks_hold = False

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "verifier_role", help="the role in the DATABASE_URL of the verifier's processes"
        )

    def act(self, **options: Any) -> Mapping[str, str]:
        if settings.DEVELOPMENT:
            raise CommandError(
                "PUBLIC_URL is on localhost, so this is development, where `serve` does all steps."
            )
        self._quiet, role = options["json"], options["verifier_role"]
        if role == unquote(urlsplit(settings.DATABASE_URL).username or ""):
            raise CommandError(
                f"{role} is the role of DATABASE_URL too: the verifier's processes need a role of "
                "their own, and DATABASE_URL here names the serving role."
            )
        steps: Mapping[str, Callable[[], str]] = {
            "database": self._check_database,
            "redis": self._check_redis,
            "store": self._check_store,
            "tables": self._migrate,
            "serving": lambda: self._grant("grant_serving_role"),
            "verifier": lambda: self._grant("grant_verifier_role", role),
            "settings": self._record_settings,
            "keys": self._ensure_keys,
        }
        done = {}
        for name, step in steps.items():
            done[name] = step()
            # Printed at once: a migration may take hours, and a later step may fail.
            if not self._quiet:
                self.say(f"{name}: {done[name]}")
        return done

    def lines(self, result: Mapping[str, Any], options: Mapping[str, Any]) -> Iterator[str]:
        # `act` has printed each step already.
        return iter(())

    def _check_database(self) -> str:
        try:
            connection.ensure_connection()
        except (DatabaseError, InterfaceError) as error:
            raise CommandError(
                f"The database does not accept the owner ({first_line(error)}): check that it "
                f"runs, correct DATABASE_OWNER_URL, and run this again, with "
                f"`{settings.OWNER_COMMAND}`."
            ) from error
        role, database = (connection.settings_dict[each] for each in ("USER", "NAME"))
        if not may_create():
            raise CommandError(CANNOT_CREATE.format(role=role, database=database))
        if wrong := clock_problem():
            raise CommandError(wrong)
        return f"{role} may create tables in {database}"

    def _check_redis(self) -> str:
        if problem := redis_problem():
            raise CommandError(problem)
        if not settings.REDIS_URL:
            return "none: the replay cache is in the database"
        return "answers, and evicts no key"

    def _check_store(self) -> str:
        if problem := store_problem():
            raise CommandError(problem)
        if settings.AUDIT_STORE.startswith("s3:"):
            return "the bucket has Object Lock"
        return "a folder, so no lock can be checked"

    def _migrate(self) -> str:
        if is_migrated():
            # Again: handlers that run after the last migration (post_migrate) may have been
            # interrupted.
            call_command("migrate", verbosity=0, interactive=False)
            return "migrated already"
        call_command(
            "migrate", verbosity=0 if self._quiet else 1, interactive=False, stdout=self.stdout
        )
        return "migrated"

    def _grant(self, *command: str) -> str:
        # Always: setting the rights again costs no more than comparing them.
        granted = self._run(*command)
        return f"{granted['role']} has its rights, on {len(granted['tables'])} tables"

    def _record_settings(self) -> str:
        changed = self._run("record_settings")["changed"]
        return f"recorded {', '.join(changed)}" if changed else "recorded already"

    def _ensure_keys(self) -> str:
        before = set(Key.objects.values_list("kid", flat=True))
        made = [purpose for purpose, kid in self._run("ensure_keys").items() if kid not in before]
        return f"made for {', '.join(made)}" if made else "made already"

    def _run(self, *command: str) -> dict[str, Any]:
        out = io.StringIO()
        call_command(*command, "--json", stdout=out, stderr=self.stderr)
        return dict(json.loads(out.getvalue()))
