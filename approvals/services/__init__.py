"""Services behind the pages. They call the services of the registry and the verifier.

- Every signature takes one path: `page_snapshot_token` (what the page showed), `statement_builders`
  (what is signed), `challenges` (made and used once), `human_row_locks`, `passkey_signature_flow`
  (all of them in order).
- Requests: `decidable_requests` finds what a person may decide, `grant_decision_signing` approves
  and denies, with `offered_capabilities` and `term_choices` (what may be approved and what was
  chosen). `agent_claim_signing` takes an agent, `confirmation_signing` answers for one transaction,
  `presence_lease_signing` is the "I'm here" switch. `lookalike_warnings` warns about names.
- Getting in: `setup_and_sign_in`, `passkey_management`, `reauthentication` (a signature for one
  sensitive act), `recovery` with `recent_recovery` and `recovery_alert_mail`.
- Ending: `cascade_previews` says what would end with something, `destructive_actions` does it once
  it is signed for, `human_suspension_and_erasure` suspends or deletes a human, `text_erasure`
  erases texts, `data_export` hands out the data.
- Resuming: `resume_signing`, with `differences_since_signing` and `change_sentences` (what changed
  since).
- After a restore: `log_break_signing`, `continue_after_restore`, `reapply_endings`,
  `grants_unused_since_backup`, `grant_release_after_restore`.
- Jobs: `expiry`, `receipt_key_backfill`.
"""
