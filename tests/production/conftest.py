"""The one installed system that all tests of this folder ask."""

import os
from pathlib import Path

import pytest

from tests.production.registry import ProductionRegistry


@pytest.fixture(scope="session")
def production() -> ProductionRegistry:
    """The running system: this process's own settings are those of its services (conftest.py)."""
    given = os.environ.get("PRODUCTION")
    assert given, "run `python -m tests.production.installation python -m pytest tests/production`"
    return ProductionRegistry(Path(given))
