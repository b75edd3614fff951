"""Proving the log: `verification` checks the tree, `leaf_checks` its events and openings.

`verification_state` remembers how far the log was proved, `log_status` summarises that for
operators, `unknown_objects` lists what the log did not write, and `public_log` answers the proof
API.
"""
