"""Services behind the pages. They call the services of the registry and the verifier.

- Every signature takes one path: `page_token` (what the page showed), `statements` (what is
  signed), `challenges` (made and used once), `signatures` (all of them in order).
- Requests: `decisions` approves and denies, with `offer` and `terms` (what may be approved and what
  was chosen). `claims` takes an agent, `confirmations` answers for one transaction, `presence` is
  the "I'm here" switch. `likeness` warns about names.
- Getting in: `people`, `passkey_registration`, `verification` (a signature for one sensitive
  act), `recovery` with `recovery_notice` and `notices`.
- Ending: `cascades` says what would end with something, `destructive_actions` does it once it is
  signed for, `human_offboarding` suspends or deletes a human, `text_erasure` erases texts,
  `exporting` hands out the data.
- Resuming: `resuming`, with `grant_drift` and `change_sentences` (what changed since).
- After a restore: `break_signing`, `continuing`, `reapply_endings`, `unused`, `releasing`.
- Jobs: `expiry`, `receipt_keys`.
"""
