"""Holds docs/acts.md to the code: every act is listed; those that enlarge need a proof (SA-1)."""

import json
import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from django.core.management import get_commands, load_command_class
from django.test import Client
from pytest_django.fixtures import Settings

from audit.management.base_commands import OperatorCommand
from tests.acts.test_acts import OURS, state, tasks
from tests.acts.world import ROWS, Row, World
from tests.endpoints import writing
from tests.sampling import one_in

pytestmark = [pytest.mark.django_db, pytest.mark.sweep]
TABLE = Path(__file__).resolve().parents[2] / "docs/acts.md"
ROW = re.compile(r"^\| `([^`]+)` \| (\w+) \| (\w+) \|", re.MULTILINE)
# What an act that enlarges may require, and what any other act may require besides.
SIGNED = {"signature", "passkey"}
ENLARGING = SIGNED | {"link", "code", "operator"}
OTHERS = {"session", "proof", "secret", "shell", "clock", "nothing"}
# Members of a request that prove more than the session does.
PROOFS = {"credential", "verification"}


def table() -> dict[str, tuple[str, str]]:
    """Act → its effect and what it requires."""
    found = ROW.findall(TABLE.read_text())
    assert len(found) == len({act for act, _effect, _takes in found}), (
        "an act stands in the table twice"
    )
    return {act: (effect, takes) for act, effect, takes in found}


def commands() -> set[str]:
    return {name for name, app in get_commands().items() if app in OURS}


def test_SA_1_every_act_is_in_the_table_of_effects() -> None:
    found = {
        *writing(),
        *tasks(),
        *(f"manage.py {name}" for name in commands()),
    }
    assert found - set(table()) == set(), "add a row to docs/acts.md"
    assert set(table()) - found == set()


def test_SA_1_nothing_enlarges_by_a_session_a_shell_or_the_clock_alone() -> None:
    for act, (effect, takes) in table().items():
        assert effect in {"enlarges", "shrinks", "neither"}, act
        assert takes in (ENLARGING if effect == "enlarges" else ENLARGING | OTHERS), act


def test_SA_1_each_command_that_enlarges_takes_its_operator() -> None:
    for name in commands():
        command = load_command_class(get_commands()[name], name)
        names_them = any(
            "--operator" in each.option_strings for each in parser_of(command)._actions
        )
        assert names_them == (table()[f"manage.py {name}"][1] == "operator"), name
        if isinstance(command, OperatorCommand):
            assert table()[f"manage.py {name}"][0] == "enlarges", name


def parser_of(command: Any) -> Any:
    return command.create_parser("manage.py", "x")


def signed() -> list[Row]:
    """Every scene of an act that requires a passkey, or that enlarges through a link."""
    doors = {
        act for act, took in table().items() if took[1] in SIGNED or took == ("enlarges", "link")
    }
    return [row for row in ROWS if row.door in doors]


@pytest.fixture
def world(db: None, now: datetime, settings: Settings, tmp_path: Path) -> World:
    settings.VAR_DIR, settings.KEY_DIRECTORY = tmp_path, tmp_path / "keys"
    return World(now)


@pytest.mark.parametrize("row", one_in(3, signed()), ids=str)
def test_SA_1_what_takes_a_passkey_is_refused_to_a_session(
    row: Row, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request that would succeed, without its signature, is refused."""
    act = row.given(world)
    before = state()
    monkeypatch.setattr(Client, "post", bare(Client.post))
    answer = act()
    body = json.loads(answer.content)
    assert (answer.status_code, body["error"]) in {
        (401, "verification_required"),
        (400, "invalid_assertion"),
        (400, "invalid_request"),
    }, body
    after = state()
    assert {name for name in after if after[name] != before[name]} <= {"floods"}


def test_SA_1_each_act_that_takes_a_passkey_has_a_scene() -> None:
    wanted = {act for act, (_effect, takes) in table().items() if takes in SIGNED}
    assert wanted - {row.door for row in signed()} == set()


def bare(post: Callable[..., Any]) -> Callable[..., Any]:
    """A browser that posts everything except what a passkey signed."""

    def posted(client: Client, path: str, data: Any = None, **more: Any) -> Any:
        fields = json.loads(data) if isinstance(data, str) else dict(data or {})
        assert PROOFS & set(fields), path
        rest = {name: value for name, value in fields.items() if name not in PROOFS}
        return post(client, path, json.dumps(rest) if isinstance(data, str) else rest, **more)

    return posted
