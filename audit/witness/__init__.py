"""What keeps the log honest from outside the database.

`checkpoints` signs (`log_signer`) the log's size and root, and copies it into a write-once store
(`checkpoint_copies`); `cosigning` asks the witnesses (`witnesses`, over `http_post`). `anchors`
reads all signed checkpoints, `log_position` compares the database with them, `breaks` records a log
that contradicts them, and `endings` keeps what no restore may undo.
"""
