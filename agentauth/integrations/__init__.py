"""Protect an API: one declarative form, and one module per framework that uses it.

- Common to all, without a framework: `requirement` says which act a route is (`requires`),
  `incoming` makes the question to verify, `answers` the answer to a refusal, and `provider` holds
  the settings and the client.
- `django`, `drf`, `asgi`, `starlette`, `fastapi` and `flask` protect the routes of a project. Each
  imports its framework, so import only the one you use.
- `forward_auth` answers a reverse proxy that asks before it passes a request on.
"""
