"""`setup_link --recover`: an operator begins a recovery, and prints its link after the wait."""

from datetime import datetime, timedelta

import pytest
from django.core.management import CommandError

from approvals.models import Recovery, SetupCode
from approvals.services.setup_and_sign_in import SetupLink
from approvals.tests.cast import Person
from approvals.tests.recovering import begun, recovered
from audit.models import Event
from audit.tests.command_output import json_of, output_of
from kms.tests.sealing import change

pytestmark = pytest.mark.django_db


def test_WR_15_the_command_begins_a_recovery_and_prints_the_link_later(
    alice: Person, now: datetime
) -> None:
    assert set(printed("ALICE@example.org")) == {"case", "ready_at"}
    with pytest.raises(CommandError, match="is not ready until"):
        printed("alice@example.org")
    change(Recovery.objects.all(), ready_at=now - timedelta(seconds=1))
    link = printed("alice@example.org")
    assert set(link) == {"url", "expires_at"}
    assert recovered(SetupLink(link["url"], now)).human.name == "Alice"
    human_id = Recovery.objects.get().human_id
    for kind in ("approvals.recovery.begun", "approvals.setup_code.created"):
        assert Event.objects.get(kind=kind, human_id=human_id).actor_kind == "system"


def printed(address: str, *more: str) -> dict[str, str]:
    return json_of("setup_link", "--recover", address, *more)


def test_the_command_says_when_a_recovery_is_ready(alice: Person) -> None:
    assert alice
    said = output_of("setup_link", "--recover", "alice@example.org")
    assert "It is ready on" in said
    assert "setup_link --recover alice@example.org" in said


@pytest.mark.parametrize(
    "arguments",
    [
        ("--recover", "nobody@example.org"),
        ("--recover", "alice@example.org", "--role", "owner"),
        ("--recover", "alice@example.org", "--email", "x@y.z"),
        ("--recover", "alice@example.org", "--stolen"),
        ("--email", "zoe@example.org", "--stolen"),
    ],
)
def test_setup_link_command_refuses_invalid_recoveries(
    alice: Person, arguments: tuple[str, ...]
) -> None:
    assert alice
    with pytest.raises(CommandError):
        output_of("setup_link", *arguments)
    assert not Recovery.objects.exists()
    assert not SetupCode.objects.filter(email="zoe@example.org").exists()


def test_the_command_takes_no_other_case_than_the_one_under_way(
    alice: Person, now: datetime
) -> None:
    begun(alice.human, now)
    with pytest.raises(CommandError, match=r"recovery \(passkey lost\) is in progress"):
        printed("alice@example.org", "--stolen")
