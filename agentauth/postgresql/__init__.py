"""Django's PostgreSQL backend (`ENGINE`), with timeouts on the client's side."""
