"""What keeps the log honest from outside the database.

`checkpoints` signs (`log_signer`) the log's size and root, and copies it into a write-once store
(`checkpoint_copies`); `cosigning` asks the witnesses (`witness_client`, over `http_post`).
`trusted_checkpoints` reads all signed checkpoints, `rollback_check` compares the database with
them, `log_breaks` records a log that contradicts them, and `ending_copies` keeps what no restore
may undo.
"""
