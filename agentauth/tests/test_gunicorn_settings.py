"""Settings that both servers share."""

from pathlib import Path

import pytest

from agentauth.server import gunicorn_settings


def test_metrics_lie_where_the_settings_put_the_files_of_a_registry(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """gunicorn reads them before Django's settings, so the default stands in both."""
    monkeypatch.delenv("VAR_DIR", raising=False)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "")
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR")
    root = Path(__file__).resolve().parents[2]
    assert (root / "manage.py").is_file()
    assert gunicorn_settings.metrics_directory("metrics") == root / "var" / "metrics"
