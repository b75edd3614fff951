"""Hypothesis settings of the protocol's tests: no example fails for taking long."""

from hypothesis import settings

# How long an example takes depends on how busy the machine is, not on the property.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
