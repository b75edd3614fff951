"""A witness of logs (c2sp.org/tlog-witness): it states that a log only ever grew, and refuses a second version of it."""
