"""The one installed system that all tests of this folder ask."""

import os
from pathlib import Path

import pytest

from tests.flows.pair import InstalledPair
from tests.production.registry import ProductionRegistry


@pytest.fixture(scope="session")
def production() -> ProductionRegistry:
    """The running system: this process's own settings are those of its services (conftest.py)."""
    given = os.environ.get("PRODUCTION")
    assert given, "run `python -m tests.production.installation python -m pytest tests/production`"
    return ProductionRegistry(Path(given))


@pytest.fixture(scope="module")
def pair(production: ProductionRegistry) -> InstalledPair:
    """Its web server and its verifier, asked as the proxy asks them, and a grant."""
    return InstalledPair(production)
