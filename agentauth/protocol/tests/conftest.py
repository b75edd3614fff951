"""How the laws of the protocol are tried: no example is failed for its time."""

from hypothesis import settings

# How long an example takes says how busy the machine is, nothing about the law.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
