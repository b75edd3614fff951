"""`make demo`: a demo service provider, and a demo agent that asks, waits, acts and is refused."""
