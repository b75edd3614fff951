"""Faults under load: what is killed, frozen, emptied or cut off, and what must hold then.

Start with `test_scenarios` and its table `scenarios`. `stage` is the system, `breaking` injects and
undoes a fault; `clients` (raw HTTP) and `callers` (the SDK) keep calling, `cast` are the agents
they use, `people` what humans do meanwhile. Then `reckoning` compares what the clients were told
with the log and the counters, and `table` reports.

`test_kills` and `test_statements` kill a server inside a call (`dying`), at named points and before
each statement. `test_table` removes each part in turn, as docs/failure-modes.md says. The others
are named after what fails: archivers, Celery, the log, keys, Redis, replicas, overload, restores,
two versions. `chaos` breaks each process and server of a whole installation, by hand; `two_hosts`
breaks the network between `namespaces`. Modules named `…_work` are the processes that those tests
start and kill.
"""
