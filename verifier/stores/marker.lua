#!lua
-- Reads the epoch of a shard, from a server that could run JUDGE. A server that is read-only, full
-- or unable to save refuses any script not flagged `no-writes`, so this script does not set that
-- flag, and fails there too. Arguments and answer: verifier/stores/lua_scripts.py.
return redis.call('GET', KEYS[1])
