"""The one installed system that all tests of this folder use."""

import os
from pathlib import Path

import pytest

from tests.flows.pair import InstalledPair
from tests.production.registry import ProductionRegistry


@pytest.fixture(scope="session")
def production() -> ProductionRegistry:
    """The running system; this process has its services' settings (conftest.py)."""
    given = os.environ.get("PRODUCTION")
    assert given, "run `python -m tests.production.installation python -m pytest tests/production`"
    return ProductionRegistry(Path(given))


@pytest.fixture(scope="module")
def pair(production: ProductionRegistry) -> InstalledPair:
    """Its web server and verifier, addressed as the proxy does, and a grant."""
    return InstalledPair(production)
