"""What keeps the log honest from outside the database.

`signing` signs (`signer_lookup`) the log's size and root, and copies it into a write-once store
(`checkpoint_copies`); `cosigning` asks the witnesses (`witness_client`, over
`audit.bounded_http_post`). `signed_checkpoint_reading` reads all signed checkpoints,
`rollback_check` compares the database with them, `log_breaks` records a log that contradicts them,
and `endings_in_store` keeps what no restore may undo. `proofs_and_tiles` answers the proof API.
"""
