"""Fault points, and the log's commands outside PostgreSQL."""

import os
import signal
from datetime import datetime
from pathlib import Path

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command
from django.db import connection

from audit.fault_injection import fault_point
from audit.tests.command_output import output_of
from audit.tests.conftest import MakeEvent

pytestmark = pytest.mark.django_db


def test_a_process_dies_only_at_the_point_it_was_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    killed: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: killed.append((pid, number)))
    file = tmp_path / "point"
    for told, reached in (
        ("", "a.b"),
        ("", ""),
        ("a.b", "a.c"),
        (f"@{file}", "a.b"),
        ("a.b", "a.b"),
    ):
        monkeypatch.setattr(settings, "FAULT_AT", told)
        fault_point(reached)
    assert killed == [(os.getpid(), signal.SIGKILL)]
    # The file may name another point while the process runs.
    monkeypatch.setattr(settings, "FAULT_AT", f"@{file}")
    for named, deaths in (("a.c", 1), ("a.b", 2)):
        file.write_text(named)
        fault_point("a.b")
        assert len(killed) == deaths


def test_the_command_of_a_whole_log_says_so_to_a_person(
    signing: None, make_event: MakeEvent, now: datetime
) -> None:
    make_event()
    for command in ("verify_audit", "seal_audit", "verify_audit"):
        said = output_of(command)
        assert said.startswith(("The log is whole: ", "Numbered 1 "))
    assert "whole: 1 events" in said


def test_granting_a_role_where_there_are_none_says_so() -> None:
    if connection.vendor == "postgresql":
        return  # test_role_rights.py has the real thing
    for command in (["grant_serving_role"], ["grant_verifier_role", "verifier"]):
        with pytest.raises(CommandError, match="Only PostgreSQL has roles"):
            call_command(*command)
