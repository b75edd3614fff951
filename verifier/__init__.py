"""May this agent do this, now? Decides calls for service providers (docs/protocol.md section 8).

Start with `verification`: one verification, step by step. `requests` parses, `credential_checks`
verifies token, proof and binding, `stores/` decides and records, and `answers` writes the body. A
call comes in through `asgi_endpoint`, the verifier process's own ASGI callable (`request_heads`
parses its heads, `json_accept_check` its Accept), or through `api`, the Django view with the same
meaning. `confirmations_api` serves agents.

`services/` holds what a decision rests on: cached state, the replay cache's epochs and the outbox
that moves decisions from Redis into the log; and what people do: confirm, and be present. `models`
are its tables. The decision itself is pure, in `agentauth.protocol.decision_rules`.
"""
