"""The registry's API. One view per act: it parses, calls one service and renders.

Start with `base_view`, the base of all: it reads the clock once, and handles the actor, idempotency
and paging. Then in the order of an agent's life: `agents`, `service_provider_lookup`, `grants`
(rendered by `grant_rendering`; `long_poll` bounds how many wait for a decision) and `tokens`.
`discovery` serves the public documents. The fields of each answer are described in
`agentauth.openapi`.
"""
