"""Fixtures of the verifier's tests that these tests use too."""

from verifier.tests.scene import place
from verifier.tests.streams import redis, redis_server, verifier

__all__ = ["place", "redis", "redis_server", "verifier"]
