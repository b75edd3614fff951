"""What operators see: logs (`request_observation`, `logging_config`), metrics (`metrics_page` shows
what `metrics` counted and `database_metrics` reads), and health.

Traces: `tracing` starts them, `traced_requests` and `traced_calls` say of what, `spans` how.

`ops_listener` serves `/metrics` and health in processes that serve nothing else; `write_check`
tells whether the database accepts writes.
"""
