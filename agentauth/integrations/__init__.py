"""Protect an API: one declarative form, and one module per framework that uses it.

- `requirement` has what is common to all of them, without a framework: which act a route is
  (`requires`), the question to verify, and the answer to a refusal.
- `django`, `drf`, `asgi`, `fastapi` and `flask` protect the routes of a project. Each imports its
  framework, so import only the one you use.

The other way round, `agent_tool` makes a call to an API a tool for a model, without a framework;
`langchain`, `autogen` and `openai_agents` make it a tool of theirs.
"""
