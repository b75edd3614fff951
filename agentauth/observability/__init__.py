"""What operators see: logs (`access_log`, `log_lines`), metrics, and health.

`ops_listener` serves `/metrics` and health in processes that serve nothing else; `write_check`
tells whether the database accepts writes.
"""
