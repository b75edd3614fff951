"""`migrate`: Django's, which gives way to whoever serves: it waits a second for a lock, and then tries once more, later.

Whoever wants a table that a migration waits for waits behind it, and callers wait 1.6 s before they are told 503. Each
migration is one transaction: one that gave way changed nothing, and those before it stand.
"""

import time
from typing import Any

from django.core.management.base import CommandError
from django.core.management.commands import migrate
from django.db import OperationalError

from registry.services.idempotency import waited_too_long

TRIES = 20
PAUSE_SECONDS = 1.5


class Command(migrate.Command):
    def handle(self, *args: Any, **options: Any) -> None:
        for tried in range(1, TRIES + 1):
            try:
                super().handle(*args, **options)
            except OperationalError as error:
                if not waited_too_long(error):
                    raise
                if tried == TRIES:
                    raise CommandError(
                        "A table is in use for too long (a backup, or an open transaction of somebody's):"
                        " nothing is half done. Run migrate again later."
                    ) from error
                self.stderr.write("A table is in use: trying again.")
                time.sleep(PAUSE_SECONDS)
            else:
                return
