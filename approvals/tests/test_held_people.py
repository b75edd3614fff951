"""Users suspended or signed out during an act (PostgreSQL): passkey acts wait and are undone."""

from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from django.db import transaction
from django.test import Client
from pytest_django.fixtures import Settings

from approvals.tests.test_ending_races import Press
from audit.tests.waiting import wait_for_lock_waiters
from registry.models import Human
from registry.services.humans import end_sessions, suspend_human
from registry.services.roles import change_role
from registry.tests.cast import TESTER
from tests.acts.test_acts import SAYINGS, known, written
from tests.acts.test_effects import signed, table
from tests.acts.world import Act, Row, World

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.postgres]
# Setup links and sign-ins have no session yet; a repeated assertion changes nothing.
HELD = [
    row
    for row in signed()
    if table()[row.door][1] != "link" and row.door != "POST sign-in/finish" and row.kinds
]


@pytest.fixture
def world(db: None, now: datetime, settings: Settings, tmp_path: Path) -> World:
    settings.VAR_DIR, settings.KEY_DIRECTORY = tmp_path, tmp_path / "keys"
    return World(now)


def caught(act: Act, monkeypatch: pytest.MonkeyPatch) -> tuple[Human, Act]:
    """The user signed in at the browser that posts the act, and that post."""
    posts: list[tuple[Client, tuple[Any, ...], dict[str, Any]]] = []
    with monkeypatch.context() as patched:
        patched.setattr(
            Client, "post", lambda *args, **more: posts.append((args[0], args[1:], more))
        )
        act()
    [(client, args, more)] = posts
    human = Human.objects.get(pk=client.session["_auth_user_id"])
    return human, lambda: client.post(*args, **more)


# What a suspension and a recovery do to the user's row. Their other effects are left out: only the
# row may stop the act.
ENDS: dict[str, Callable[..., None]] = {
    "suspended": partial(suspend_human, even_last_owner=True),
    "signed-out": end_sessions,
}


TAKES_ROLE: Callable[..., None] = partial(change_role, role=None, even_last_owner=True)
PAIRS = [
    *(pytest.param(row, end, id=f"{row}-{name}") for row in HELD for name, end in ENDS.items()),
    # A change of role ends the sessions too: one act shows that this is enough.
    *(
        pytest.param(row, TAKES_ROLE, id=f"{row}-no-role")
        for row in HELD
        if str(row) == "an_admin_invites"
    ),
]


@pytest.mark.parametrize(("row", "end"), PAIRS)
def test_SA_1_passkey_act_is_undone_if_its_user_is_ended_during_it(
    row: Row, end: Callable[..., None], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    human, post = caught(row.given(world), monkeypatch)
    events, answers = known(), list[Any]()
    with transaction.atomic():
        end(human=human, actor=TESTER, now=world.now)
        ended = set(written(events))
        press = Press(lambda: answers.append(post()))
        wait_for_lock_waiters()
    press.join()
    [answer] = answers
    assert answer.status_code in {404, 409}, answer.content
    assert set(written(events)) - ended <= SAYINGS


def test_SA_1_acts_that_enlarge_by_a_passkey_are_among_these() -> None:
    wanted = {
        door
        for door, took in table().items()
        if took in {("enlarges", "signature"), ("enlarges", "passkey")}
    }
    assert wanted - {row.door for row in HELD} == set()
