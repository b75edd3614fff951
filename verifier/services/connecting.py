"""A thread's own connection to the database, for those who must know soon that nobody answers."""

from typing import Any, Final

from django.db import DEFAULT_DB_ALIAS, connections

# No statement takes longer.
STATEMENT_SECONDS: Final = 2


def use_own_connection(name: str) -> None:
    """From now on this thread's `django.db.connection` is one with short limits; `name` is what the server shows of it.

    Nothing is connected yet. The thread closes it when it ends (`connections.close_all`).
    """
    own: Any = connections[DEFAULT_DB_ALIAS].copy()
    if own.vendor == "postgresql":
        own.settings_dict["OPTIONS"] |= {"application_name": name} | own.limits(STATEMENT_SECONDS)
    connections[DEFAULT_DB_ALIAS] = own
