"""A thread's own connection to the database, for those who must know soon that nobody answers."""

from typing import Any, Final

from django.db import DEFAULT_DB_ALIAS, connections

# No statement takes longer; what was sent and is not acknowledged ends the connection after as long.
STATEMENT_MS: Final = 2_000
CONNECT_SECONDS: Final = 2


def use_own_connection(name: str) -> None:
    """From now on this thread's `django.db.connection` is one with short limits; `name` is what the server shows of it.

    Nothing is connected yet. The thread closes it when it ends (`connections.close_all`).
    """
    own = connections[DEFAULT_DB_ALIAS].copy()
    if own.vendor == "postgresql":
        options: dict[str, Any] = own.settings_dict["OPTIONS"]
        options |= {
            "application_name": name,
            "connect_timeout": CONNECT_SECONDS,
            "options": f"-c statement_timeout={STATEMENT_MS} -c lock_timeout={STATEMENT_MS}",
            "keepalives_idle": 2,
            "keepalives_interval": 1,
            "keepalives_count": 2,
            "tcp_user_timeout": STATEMENT_MS,
        }
    connections[DEFAULT_DB_ALIAS] = own
