"""Signing keys of three purposes: for tokens, receipts and the audit log.

Start with `models` (a key's record; no private key is in the database) and `services` (which key
signs, which verify, rotation). `lifetimes` computes what a key may do from its times. `backends/`
hold the private keys; `signing_rate` limits token signing to what a throttling one accepts.

So that a token need not wait for a backend, `process_key_certificates` lets a token key certify
keys of single processes, and `token_signer` makes and renews the one of this process.
`state_change_publisher` tells verifiers of every change. `key_health` and `immediate_rotation`
serve operators, and `jwks_view` the key set.

`row_seals` and `seal_backfill` prove with a MAC that our services wrote a row that gives a right,
in this app and in the apps above.
"""
