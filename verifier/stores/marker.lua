#!lua
-- The epoch that is marked in a shard, from a server that could judge: one that is read-only or full, or that cannot save
-- while it should, refuses whatever script does not say that it writes nothing. So this one does not say it.
-- Arguments and answer: verifier/stores/scripts.py.
return redis.call('GET', KEYS[1])
