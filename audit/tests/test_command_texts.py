"""Texts of agents and service providers reach an operator's terminal escaped, in every command."""

import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection

from agentauth.protocol.errors import InvalidStateError
from agentauth.protocol.untrusted_text import printable
from audit.management.base_commands import JsonCommand

pytestmark = pytest.mark.django_db

HOSTILE = "x\x1b]0;t\x07\x1b[8m\x9b2J\x7f\n\r\u202egpj\u200b\u2028\ue000"
SHOWN = r"x\x1b]0;t\x07\x1b[8m\u{9b}2J\x7f\n\r\u{202e}gpj\u{200b}\u{2028}\u{e000}"


class Shows(JsonCommand):
    """A command like ours, about a row with a hostile name."""

    checks_settings = checks_hold = False

    def act(self, **options: Any) -> Mapping[str, Any]:
        self.agrees(f"About {HOSTILE}.", f"End {HOSTILE}?")
        return {"name": HOSTILE}


class Told(Shows):
    def lines(self, result: Mapping[str, Any], options: Mapping[str, Any]) -> Iterator[str]:
        yield f"Ended {result['name']}."


class Refuses(Shows):
    def act(self, **options: Any) -> Mapping[str, Any]:
        raise InvalidStateError(HOSTILE)


class Waits(Shows):
    """A command that another transaction keeps waiting."""

    def act(self, **options: Any) -> Mapping[str, Any]:
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL statement_timeout = '10ms'")
            cursor.execute("SELECT pg_sleep(5)")
        return {}


@pytest.mark.postgres
def test_a_command_that_waited_too_long_says_to_run_it_again() -> None:
    with pytest.raises(CommandError, match=r"statement timeout\. Other processes .* Run it again"):
        call_command(Waits())


@pytest.mark.parametrize(
    ("command", "line"), [(Shows, f"name: {SHOWN}"), (Told, f"Ended {SHOWN}.")]
)
def test_a_command_shows_names_as_text(
    command: type[JsonCommand], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    out, err = io.StringIO(), io.StringIO()
    call_command(command(), stdout=out, stderr=err)
    assert out.getvalue() == f"{line}\n"
    assert err.getvalue() == f"About {SHOWN}.\nEnd {SHOWN}? [yes/no] "


def test_a_refusal_shows_names_as_text() -> None:
    with pytest.raises(CommandError) as refused:
        call_command(Refuses())
    assert str(refused.value) == SHOWN


def test_json_says_the_very_name_in_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    out = io.StringIO()
    call_command(Shows(), json=True, stdout=out, stderr=io.StringIO())
    [line] = out.getvalue().splitlines()
    assert line == printable(line)
    assert json.loads(line) == {"name": HOSTILE}
