"""Humans, agents and service providers, and what they were granted.

Start with `models/` (the rows) and `services/` (every change of them). `authentication` finds who
calls: an agent by a proof under its key, a service provider by id and secret. `permissions` says
who may use an endpoint, and denies by default; `caller_limits` counts each caller's requests.
`api/` and `urls` are the HTTP interface, `admin` the pages of administrators, `management/` the
commands of operators. `refusal_recording` records what was refused, and `release_compatibility`
which releases of the code may share the database.

docs/protocol.md sections 2 and 4 to 7 are the contract. The app asks no human anything: pages,
passkeys and sessions belong to `approvals`, and decisions about calls to `verifier`.
"""
