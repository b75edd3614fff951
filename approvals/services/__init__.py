"""Services behind the pages. They call the services of the registry and the verifier.

- Every signature takes one path: `page_token` (what the page showed), `statements` (what is
  signed), `challenges` (made and used once), `signatures` (all of them in order).
- Requests: `grant_decisions` approves and denies, with `approvable_terms` and `term_choices` (what
  may be approved and what was chosen). `claims` takes an agent, `confirmations` answers for one
  transaction, `presence_switch` is the "I'm here" switch. `lookalike_warnings` warns about names.
- Getting in: `setup_and_sign_in`, `passkey_management`, `reauthentication` (a signature for one
  sensitive act), `recovery` with `recovery_notice` and `recovery_mail`.
- Ending: `cascades` says what would end with something, `destructive_actions` does it once it is
  signed for, `human_offboarding` suspends or deletes a human, `text_erasure` erases texts,
  `data_export` hands out the data.
- Resuming: `resuming`, with `grant_drift` and `change_sentences` (what changed since).
- After a restore: `log_break_signing`, `restore_continuation`, `reapply_endings`, `unused_grants`,
  `grant_release`.
- Jobs: `expiry`, `receipt_key_backfill`.
"""
