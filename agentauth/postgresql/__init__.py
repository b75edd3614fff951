"""Django's PostgreSQL backend (`ENGINE`), with connections that give up by themselves."""
