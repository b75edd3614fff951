"""A witness (c2sp.org/tlog-witness): cosigns a log's checkpoints only while the log just grows."""
