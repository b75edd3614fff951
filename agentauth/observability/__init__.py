"""What operators see: logs (`request_observation`, `logging_config`), metrics, and health.

`ops_listener` serves `/metrics` and health in processes that serve nothing else; `write_check`
tells whether the database accepts writes.
"""
