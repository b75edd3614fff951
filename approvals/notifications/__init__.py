"""Notifications: people are told of what waits for them and of changes to their account.

- `channels`: a person adds, changes and removes where they are told, and when not.
- `outbox`: rows that say what to send where. `delivery`: the job that fills and empties it.
- `mail` and `webhooks`: the two ways out. `webhook_addresses` says where a webhook may go,
  `webhook_secrets` encrypts the keys that sign its messages.
"""
