"""The client of agents and service providers. Stands on the protocol and httpx, never on Django."""
