"""Stories over HTTP, across apps, and sweeps over every address.

Start with `test_agent_life`, then `test_rotation`, `test_revocation` and `test_log_story`. The SDK
from outside: `test_readme`, `test_sdk_…`. Sweeps, in this process on a database of their own, ask
every address: `test_sweep` and `test_ownership` (who may), `test_requests` and `test_hardening`
(misuse), `test_hostile_texts` and `test_scanner` (pages). The servers themselves, with raw bytes:
`test_web_server`, `test_verifier_connections`, `test_slow_senders` and others. Processes together:
`test_shared_settings`, `test_same_answers`, `test_pgbouncer`, `test_partition`.

A flow runs on the installed system if it can; one that starts its own servers says why. `asking`,
`fuzzing` and `pair` are what they share.
"""
