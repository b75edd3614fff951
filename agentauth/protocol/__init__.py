"""The protocol: types, bytes, signatures and proofs. No I/O, no clock, no framework."""
