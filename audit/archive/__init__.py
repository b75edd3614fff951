"""The archive: numbered events, segment by segment, in a write-once store, in the form docs/protocol.md section 9 gives.

`archiving` writes and reads back, `restoring` brings events home, `proving` needs the store alone. Personal values are
in none of it: an event holds commitments, and the openings stay in the database.
"""
