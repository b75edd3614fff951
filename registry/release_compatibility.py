"""The release of this code, and the releases of the database on which it may run.

Two neighbouring releases run side by side during an upgrade (docs/upgrade.md). So each release must
work with what the next one changes in PostgreSQL and Redis, and the next one with what this one
left there.
"""

from typing import Any, Final

from django.conf import settings
from django.db import migrations

# Raise it with each merged change to what processes share: tables, rights, keys and entries in
# Redis, members of tokens. `makemigrations` then asks for a migration of the column's default; add
# `raise_release` to it.
RELEASE: Final = 5
# How many releases the database may be ahead of this one.
BESIDE: Final = 1


def disagreement(database: int, *, code: int = RELEASE) -> str | None:
    """Why code at one release may not run on a database at another, and what to do; or None."""
    if database < code:
        return (
            f"this code is release {code} and the database is at release {database}: migrate "
            "it first, as the owner,"
            f" with `{settings.OWNER_COMMAND} migrate` of this code, then grant_serving_role "
            "and grant_verifier_role"
        )
    if database > code + BESIDE:
        return (
            f"this code is release {code} and the database is at release {database}, on which "
            "only releases"
            f" {database - BESIDE} and {database} may run: install one of them"
        )
    return None


def raise_release(number: int) -> migrations.RunPython:
    """For the migration of each release: raise the number that processes read. Never lowered."""

    def raised(apps: Any, _editor: Any) -> None:
        rows = apps.get_model("registry", "Installation").objects
        rows.filter(release__lt=number).update(release=number)

    return migrations.RunPython(raised, migrations.RunPython.noop)
