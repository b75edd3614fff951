"""Notifications: what waits for a person's decision, and changes to their account.

- `channel_management`: the addresses that a person adds, changes and removes, and their quiet
  hours.
- `outbox`: rows that say what to send where. `delivery`: the job that fills and empties it.
- `mail`, `webhooks`, `chat_webhooks` and `push` compose the kinds of messages; `posting` sends all
  but mail. `push_encryption` encrypts a message for a browser.
- `channel_addresses` says where a message may go, `channel_secrets` encrypts the keys of channels.
"""
