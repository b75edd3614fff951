"""Deciding whether an agent may act now, and what people do about it: one module per subject."""
