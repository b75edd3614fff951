import time

import pytest

from agentauth.sdk.tests.fake_registry import FakeRegistry


@pytest.fixture
def registry() -> FakeRegistry:
    return FakeRegistry(now=int(time.time()))
