"""Proving the log: `verification` checks the tree, `entry_checks` its events and openings.

`incremental_verification` remembers how far the log was proved, `log_status` summarises that for
operators, and `unknown_store_objects` lists what the log did not write.
"""
