"""Fixtures of the kms tests."""

from pathlib import Path

import pytest
from pytest_django.fixtures import Settings


@pytest.fixture(autouse=True)
def key_directory(settings: Settings, tmp_path: Path) -> Path:
    """Every test has a key directory of its own."""
    settings.KEY_DIRECTORY = tmp_path / "keys"
    return tmp_path / "keys"
