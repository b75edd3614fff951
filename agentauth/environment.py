"""Readers of the environment, for settings alone."""

import os


def env(name: str, default: str = "") -> str:
    """The value of one variable, without spaces around it."""
    return os.environ.get(name, default).strip()


def env_section(prefix: str) -> dict[str, str]:
    """All variables that begin so, by the rest of their names."""
    return {name.removeprefix(prefix): env(name) for name in os.environ if name.startswith(prefix)}
