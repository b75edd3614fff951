"""What the registry does. An act writes its rows and its audit event in one transaction.

- People and service providers: `humans`, `service_providers`, `provider_authentication` (id and
  secret), `pairwise_subjects` (a person's `sub` at a service provider), `lookalikes` (names that
  imitate others).
- Agents, in the order of their life: `enrolment_codes`, `agent_registration`, `agent_claims`,
  `agents`, `agent_manifests`, `agent_key_rotation`; `agent_key_lookup` says which key may call,
  `barred_keys` which may not, permanently.
- Grants: `grant_requests`, then `grants`. `dependent_grant_suspension` follows a change of key,
  manifest, audience or allow-list. `approval_receipt_check` finds the human's signed approval,
  `grant_log_check` what the log says against a grant, and `evidence_contradictions` checks all
  grants with both, and also the other sealed rows and the erasures.
- Tokens: `tokens` issues and revokes, `token_size` measures, `token_state` says what one may do.
- Requests: `spent_proofs` (the replay cache), `nonces`, `idempotency`, `poll_interval`.
- Secrets that people carry: `code_derivation` (claim links and codes), `secret_key_macs`.
- The installation: `settings_agreement` (settings all processes share), `database_time`,
  `log_keys`.
- Cleaning up: `expiry` records what has ended, `text_erasure` erases a deleted human's texts.
"""
