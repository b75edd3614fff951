"""Fixtures of the verifier's tests."""

from verifier.tests.moving import time
from verifier.tests.scene import place

__all__ = ["place", "time"]
