"""What one can do to humans, agents, service providers, grants and tokens: one module per subject."""
