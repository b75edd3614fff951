"""Fixtures of the kms tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_django.fixtures import Settings

from tests import openbao


@pytest.fixture(autouse=True)
def key_directory(settings: Settings, tmp_path: Path) -> Path:
    """Every test has a key directory of its own."""
    settings.KEY_DIRECTORY = tmp_path / "keys"
    return tmp_path / "keys"


@pytest.fixture(scope="session")
def openbao_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One real server for all tests that ask it."""
    with openbao.server(tmp_path_factory.mktemp("openbao")) as url:
        yield url


@pytest.fixture
def vault(settings: Settings, openbao_url: str) -> str:
    """Settings that name the real server; its address."""
    settings.KEY_BACKEND, settings.VAULT_ADDR, settings.VAULT_TOKEN = "vault", openbao_url, openbao.ROOT_TOKEN
    return openbao_url
