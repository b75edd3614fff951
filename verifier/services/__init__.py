"""What decisions rest on, and what people do about them.

- A verification: `verifier_process` and `web_verification` give `verifier.verification` its means.
  `batch` and `batch_fairness` handle many requests in one call, `introspection` the question
  about a token.
- State: `state_change_feed` publishes, `state_watcher` listens, `state_cache` keeps each
  `cached_token` in a `tagged_cache`, `cache_loader` loads what is missing, `verified_token_cache`
  remembers checked signatures, and `freshness` bounds how old all this may be.
- The replay cache: `replay_epochs`, `replay_cache_lease` (to use it) and `replay_epoch_keeper`
  (begins the next one).
- Clocks and connections: `host_clock_check`, `clock_readings`, `short_timeout_connection`.
- Redis to log: `decision_stream_drain`.
- People: `confirmation_lifecycle` (with `confirmation_receipt_check`) and `presence_leases`.
- A database that was set back: `rollback_hold` detects it at start, `periodic_rollback_check`
  while running, and `closing_before_restore` prepares a planned restore.
- Cleaning up: `expiry`, `text_erasure`.
"""
