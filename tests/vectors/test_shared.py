"""Where the shared files are looked for; tests/run.py covers a run without them."""

from pathlib import Path

import pytest

from .shared import named_folder


def test_shared_files_are_where_the_variable_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "security").mkdir()
    monkeypatch.setenv("AGENTAUTH_SHARED", str(tmp_path))
    assert named_folder() == tmp_path / "security"


def test_an_empty_variable_means_no_shared_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTAUTH_SHARED", "")
    assert named_folder() is None


def test_a_wrong_path_of_shared_files_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTAUTH_SHARED", str(tmp_path / "elsewhere"))
    with pytest.raises(FileNotFoundError, match="AGENTAUTH_SHARED names"):
        named_folder()
