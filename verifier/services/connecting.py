"""A thread's own connection to the database, for those who must know soon that nobody answers."""

from typing import Any, Final

from django.db import DEFAULT_DB_ALIAS, connections

# No statement takes longer, unless its thread says so; what was sent and is not acknowledged ends the connection after as long.
STATEMENT_SECONDS: Final = 2
CONNECT_SECONDS: Final = 2
# The server's own word, that a statement took too long, is waited for this much longer.
_SPARE_SECONDS: Final = 1


def use_own_connection(name: str, *, statement_seconds: int = STATEMENT_SECONDS) -> None:
    """From now on this thread's `django.db.connection` is one with short limits; `name` is what the server shows of it.

    Nothing is connected yet. The thread closes it when it ends (`connections.close_all`).
    """
    own = connections[DEFAULT_DB_ALIAS].copy()
    if own.vendor == "postgresql":
        options: dict[str, Any] = own.settings_dict["OPTIONS"]
        milliseconds = statement_seconds * 1000
        options |= {
            "application_name": name,
            "connect_timeout": CONNECT_SECONDS,
            # A wait for a lock ends first: it says what was waited for, to somebody who is still there to hear it.
            "options": f"-c statement_timeout={milliseconds} -c lock_timeout={milliseconds * 4 // 5}"
            " -c idle_in_transaction_session_timeout=30000",
            "answer_seconds": statement_seconds + _SPARE_SECONDS,
            "keepalives_idle": 2,
            "keepalives_interval": 1,
            "keepalives_count": 2,
            "tcp_user_timeout": milliseconds,
        }
    connections[DEFAULT_DB_ALIAS] = own
