"""The append-only, provable log of events. It imports no other app."""
