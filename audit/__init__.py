"""The append-only, provable log of events. It imports no other app.

Read `services` first (what other apps call), then `kinds` and `models`. `log/` writes, numbers and
lists events; `checkpoints/` signs checkpoints and keeps them outside; `verify/` proves the log;
`archive/` writes months into a store of `stores/` and restores them; `db/` holds statements,
partitions, triggers and rights. `bounded_http_post` sends one request to a server that is
not trusted. docs/protocol.md section 9 is the contract.
"""
