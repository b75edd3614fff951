"""What the registry does. An act writes its rows and its audit event in one transaction.

- People and service providers: `people`, `service_providers`, `provider_authentication` (id and
  secret), `subjects` (a person's `sub` at a service provider), `lookalikes` (names that imitate
  others).
- Agents, in the order of their life: `enrolment`, `registration`, `agents`, `manifests`,
  `rotation`; `keys` says which key may call, and which are barred permanently.
- Grants: `grant_requests`, then `grants`. `grant_changes` follows a change of key, manifest,
  audience or allow-list. `proved_grants` finds the human's signed approval, `grant_history` what
  the log says against a grant, and `standing_grants` checks them all.
- Tokens: `tokens` issues and revokes, `token_size` measures, `token_state` says what one may do.
- Requests: `spent_proofs` (the replay cache), `nonces`, `idempotency`, `polling`, `codes`.
- The installation: `installation` (settings all processes share), `database_time`, `log_keys`.
- Cleaning up: `expiry` records what has ended, `forgetting` erases a deleted human's texts.
"""
