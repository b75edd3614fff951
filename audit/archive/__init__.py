"""The archive: segments of numbered events in a write-once store (docs/protocol.md section 9).

`segment_writing` writes segments and reads them back, `restoring` inserts missing events into the
database, `archive_verification` needs only the store. The archive holds no personal values: events
hold commitments, and the openings stay in the database.
"""
