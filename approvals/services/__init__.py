"""Services behind the pages. They call the services of the registry and the verifier.

- Every signature takes one path: `drawn` (what the page showed), `statements` (what is signed),
  `challenges` (made and used once), `signatures` (all of them in order).
- Requests: `decisions` approves and denies, with `offer` and `terms` (what may be approved and what
  was chosen). `claims` takes an agent, `confirmations` answers for one transaction, `presence` is
  the "I'm here" switch. `likeness` warns about names.
- Getting in: `people`, `credentials` (passkeys), `verification` (a signature for one sensitive
  act), `recovery` with `recovered` and `notices`.
- Ending: `losses` says what would end with something, `ending` does it once it is signed for,
  `leaving` suspends or deletes a human, `forgetting` erases texts, `exporting` hands out the data.
- Resuming: `resuming`, with `since_signed` and `moved` (what changed since).
- After a restore: `break_signing`, `continuing`, `ending_again`, `unused`, `releasing`.
- Jobs: `expiry`, `receipt_keys`.
"""
