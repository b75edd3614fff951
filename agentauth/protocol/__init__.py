"""The protocol: types, bytes, signatures and proofs. No I/O, no clock, no framework.

- Bytes: `encoding` and `json_fields` (strict), `keys`, `jose` (the only parser of JWS), `cose`,
  `url_normalization`, `identifiers`, `untrusted_text`; `errors` lists every refusal,
  `fast_dataclass` is for speed alone.
- An agent: `agent_manifest` (what it may ever ask for), `dpop` (its proofs), `key_change`.
- What is granted: `capability` with `money` and `argument_constraint`, compared by
  `capability_comparison`; `behavioural_envelope` with `hours_and_periods` and `usage_counters`.
- What a person signs: `passkey_statements` with `statement_fields`, built by `statement_building`,
  `resume_statement` and `grant_release_statement`; `approval_receipt` proves it later. `catalogue`
  has the service's words in it.
- A call: `token` (with `process_key_certificate` for delegated keys, and `key_set`), then
  `decision_rules`, the pure yes or no.
- The log: `log_hashes` hashes, `merkle_proofs` makes and verifies proofs; `signed_notes`,
  `checkpoint` and `checkpoint_proofs` are its texts; `key_introduction` leads from one key to the
  next.

Begin with `capability`, `token` and `decision_rules`. docs/protocol.md is the contract.
"""
