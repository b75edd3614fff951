"""Writing and reading the log.

An event goes through `event_inserts` (the insert), `event_encoding` (its canonical bytes) and
`sequencer` (its number, in the Merkle tree of `tree_reader`). `listing` reads events back.
`erasure` deletes personal values, `load_shedding` sheds load, and `refusal_counts` counts what
strangers were refused.
"""
