"""Protect an API, or equip an agent: one module per framework.

- Common to all that protect, without a framework: `requirement` says which act a route is
  (`requires`), `incoming_request` makes the question to verify, `refusals_and_caching` the answer
  to a refusal, and `provider_settings` holds the settings and the client.
- `django`, `drf`, `asgi`, `starlette`, `fastapi` and `flask` protect the routes of a project. Each
  imports its framework, so import only the one you use. `django_decorators` is a part of `django`.
- `forward_auth` answers a reverse proxy that asks before it passes a request on.
- For agents: `agent_tool` makes a call to an API a tool for a model, whose result `tool_results`
  writes; `langchain`, `autogen` and `openai_agents` make it a tool of theirs.
"""
