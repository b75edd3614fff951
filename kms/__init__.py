"""Signing keys: their records, their life, and the backends that hold them."""
