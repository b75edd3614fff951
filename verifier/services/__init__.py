"""What decisions rest on, and what people do about them.

- A verification: `verifier_process` and `web_process` give `verifier.flow` its means. `batch` and
  `batch_order` handle many requests in one call, `introspection` the question about a token.
- State: `state_changes` publishes, `state_watcher` listens, `state_cache` keeps `token_cache`,
  `batch_loader` loads what is missing, `verified_tokens` remembers checked signatures, and
  `freshness` bounds how old all this may be.
- The replay cache: `epochs` (the lease to use it) and `epoch_keeper` (begins the next one).
- Clocks and connections: `clocks`, `elapsed`, `connecting`.
- Redis to log: `outbox`.
- People: `confirmations` (with `confirmation_receipts`) and `presence`.
- A database that was set back: `rollback_detection` detects it at start, `rollback_mark` while
  running, and `closing` prepares a planned restore.
- Cleaning up: `expiry`, `forgetting`.
"""
