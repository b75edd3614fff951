"""Services for humans, agents, service providers, grants and tokens: one module per subject."""
