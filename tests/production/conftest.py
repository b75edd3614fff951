"""The one installed system that all tests of this folder share: the one tests/run.py started, else one of this session's own."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentauth.sdk import wire
from tests.production.installation import ProductionRegistry, installed


@contextlib.contextmanager
def _running() -> Iterator[ProductionRegistry]:
    if given := os.environ.get("PRODUCTION"):
        yield ProductionRegistry(Path(given))
    else:
        with installed() as registry:
            yield registry


@pytest.fixture(scope="session")
def production() -> Iterator[ProductionRegistry]:
    """The running system. Clients in this process trust its certificate meanwhile."""
    with _running() as registry, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(registry.certificate))
        wire.ssl_context.cache_clear()
        yield registry
    wire.ssl_context.cache_clear()
