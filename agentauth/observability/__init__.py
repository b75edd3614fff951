"""What operators see: logs (`request_observation`, `logging_config`), metrics (`metrics_page` shows
what `metrics` counted and `database_metrics` reads), and health.

`ops_listener` serves `/metrics` and health in processes that serve nothing else; `write_check`
tells whether the database accepts writes.
"""
