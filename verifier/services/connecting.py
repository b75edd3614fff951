"""A thread's own connection to the database, for those who must know soon that nobody answers."""

from typing import Any, Final

from django.db import DEFAULT_DB_ALIAS, connections

# No statement takes longer.
STATEMENT_SECONDS: Final = 2


def use_own_connection(name: str, *, wait_seconds: float | None = None) -> None:
    """From now on this thread's `django.db.connection` is one with short limits; `name` is what the server shows of it.

    `wait_seconds`: for a lock it waits no longer than this.
    Nothing is connected yet. The thread closes it when it ends (`connections.close_all`).
    """
    own: Any = connections[DEFAULT_DB_ALIAS].copy()
    if own.vendor == "postgresql":
        own.settings_dict["OPTIONS"] |= {"application_name": name} | own.limits(STATEMENT_SECONDS)
        if wait_seconds is not None:
            own.settings_dict["OPTIONS"]["options"] += f" -c lock_timeout={round(wait_seconds * 1000)}"
    connections[DEFAULT_DB_ALIAS] = own
