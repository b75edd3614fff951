"""A database connection with short limits, for threads that must notice an outage soon."""

from typing import Any, Final

from django.db import DEFAULT_DB_ALIAS, connections

# Statement timeout (s).
STATEMENT_SECONDS: Final = 2


def use_own_connection(name: str, *, wait_seconds: float | None = None) -> None:
    """Give this thread a `django.db.connection` of its own, with short limits.

    `name` is the application name that the server shows. `wait_seconds` is the lock timeout.
    It does not connect yet. The thread must close it when it ends (`connections.close_all`).
    """
    own: Any = connections[DEFAULT_DB_ALIAS].copy()
    if own.vendor == "postgresql":
        short = own.short_options(STATEMENT_SECONDS)
        own.settings_dict["OPTIONS"] |= {"application_name": name} | short
        if wait_seconds is not None:
            own.settings_dict["OPTIONS"]["options"] += (
                f" -c lock_timeout={round(wait_seconds * 1000)}"
            )
    connections[DEFAULT_DB_ALIAS] = own
