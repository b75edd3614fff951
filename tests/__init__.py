"""Tests that cross apps, and what they stand on. Tests of one app are in its own `tests/`.

- Modules here named `test_…` hold house rules (`test_layout`, `test_source`), migrations, and rules
  over all apps. `CASES.md` names the test of each security case, held by `test_cases`.
- `flows/`: stories over HTTP. `acts/`: every act and the events it writes. `contract/`: the docs,
  held to the code. `vectors/`: exact bytes.
- `browser/`: real Chromium. `interop/`: clients and verifiers in other languages. `production/`:
  the system that docs/install.md installs.
- `faults/`: what is killed, frozen or cut off. `campaign/`: mutated input. `mutation/`: tests for
  the tests. `frameworks/`: agent frameworks, each run by the campaign in its own environment.
- To stand on: `live` starts a registry, `actors` are an agent and a service provider, `seed`,
  `receipts` and `decide` make grants without pages, `oracle` finds broken promises. `postgres`,
  `redis_servers`, `nginx` and others start the real thing; `through` runs tests at the other
  endpoint and replay cache.

`run` runs the groups of `make test`.
"""
