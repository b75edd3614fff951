"""Nothing ends the keeper's thread."""

import logging
import threading
from datetime import datetime

import pytest
from django.db import OperationalError
from django.utils import timezone

from verifier.models import Home
from verifier.services import keeper
from verifier.services.home import LEASE
from verifier.services.keeper import Keeping


def test_nothing_that_nobody_foresaw_ends_the_thread_and_it_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    troubles: list[Exception | None] = [
        ValueError("one"),
        KeyError("two"),
        None,
        OperationalError(),
        ValueError("three"),
    ]
    turned = threading.Event()

    def turn(*, now: datetime) -> None:
        assert now <= timezone.now()
        if not troubles:
            turned.set()
        elif trouble := troubles.pop(0):
            raise trouble

    class Silent:
        def write_down(self, *, before: int | None = None) -> None:
            pass

    monkeypatch.setattr(keeper, "TURN_SECONDS", 0.001)
    monkeypatch.setattr(keeper, "keep_home", turn)
    monkeypatch.setattr(keeper, "TOLD", Silent())
    monkeypatch.setattr(LEASE, "held", Home)
    keeping = Keeping()
    keeping.start()
    assert turned.wait(10)
    keeping.stop()
    said = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [str(record.exc_info[1]) for record in said if record.exc_info] == ["one", "three"]
