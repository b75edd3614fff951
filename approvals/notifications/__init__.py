"""Notifications: what waits for a person's decision, and changes to their account.

- `channels`: the addresses that a person adds, changes and removes, and their quiet hours.
- `outbox`: rows that say what to send where. `delivery`: the job that fills and empties it.
- `mail` and `webhooks`: the two kinds of delivery. `webhook_addresses` says where a webhook may go,
  `webhook_secrets` encrypts the keys that sign its messages.
"""
