"""Irreversible commands show what ends, like the pages, and wait for a yes."""

import io
import json
from datetime import datetime
from io import StringIO

import pytest
from django.core.management import CommandError, call_command

from agentauth.protocol.keys import PrivateKey
from approvals.tests.cast import Person
from approvals.tests.test_destructive_actions import replaced
from kms.models import Key, KeyCertificate
from kms.process_key_certificates import certify
from registry.models import Grant

pytestmark = pytest.mark.django_db


def run(monkeypatch: pytest.MonkeyPatch, *command: str, answer: str = "") -> tuple[str, str]:
    """stdout and stderr of the command, with this on its stdin."""
    out, err = StringIO(), StringIO()
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    call_command(*command, stdout=out, stderr=err)
    return out.getvalue(), err.getvalue()


def test_SA_8_disable_key_shows_what_ends_and_waits_for_a_yes(
    alice: Person, reading: Grant, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice.approve(reading)
    key = replaced("receipt", now)
    for answer in ("", "no\n", "y\n", "YES\n"):
        with pytest.raises(CommandError, match="Nothing was changed"):
            run(monkeypatch, "disable_key", key.kid, answer=answer)
    key.refresh_from_db()
    assert key.state == "retired"
    out, err = run(monkeypatch, "disable_key", key.kid, "--json", answer="yes\n")
    assert json.loads(out) == {"kid": key.kid, "purpose": "receipt", "state": "disabled"}
    for words in (
        key.kid,
        "1 receipt that it signed is no longer valid",
        "cannot act until its owner approves it again",
        "Disable it? [yes/no]",
    ):
        assert words in err


def test_SA_8_with_yes_nothing_is_asked(now: datetime, monkeypatch: pytest.MonkeyPatch) -> None:
    key = replaced("token", now)
    out, err = run(monkeypatch, "disable_key", key.kid, "--yes")
    assert (out, err) == (f"Disabled the token key {key.kid}.\n", "")
    with pytest.raises(CommandError, match="disabled already"):
        run(monkeypatch, "disable_key", key.kid)


def test_SA_8_the_command_refuses_the_last_usable_key_without_a_question(
    keys: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    kid = Key.objects.get(purpose="token").kid
    for options in ([], ["--yes"]):
        with pytest.raises(
            CommandError, match=r"last token key that can sign\. First publish the next one"
        ):
            run(monkeypatch, "disable_key", kid, *options, answer="yes\n")
    assert Key.objects.get(purpose="token").state == "active"


def test_SA_8_command_checks_for_the_last_key_before_it_disables_one(
    keys: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page refuses, but the service, called later, would not: the question must come first."""
    key = Key.objects.get(purpose="token")
    monkeypatch.setattr(
        "approvals.management.commands.disable_key.disable_key",
        lambda **_how: pytest.fail("disabled"),
    )
    with pytest.raises(CommandError, match="last token key"):
        run(monkeypatch, "disable_key", key.kid, answer="yes\n")


def test_SA_8_revoke_key_certificate_asks_too(
    keys: None, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = certify(PrivateKey.generate().public, process=1, now=now)
    with pytest.raises(CommandError, match="Nothing was changed"):
        run(monkeypatch, "revoke_key_certificate", str(row.serial))
    assert KeyCertificate.objects.get().state == "certified"
    _, err = run(monkeypatch, "revoke_key_certificate", str(row.serial), answer="yes\n")
    assert row.instance in err
    assert KeyCertificate.objects.get().state == "revoked"


def test_a_restore_is_continued_only_after_a_yes(monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("continue_after_restore", "--operator", "ada")
    with pytest.raises(CommandError, match="Nothing was changed"):
        run(monkeypatch, *command, answer="y\n")
    for more, answer in (([], "yes\n"), (["--yes"], "")):
        with pytest.raises(CommandError, match="The database is not held"):
            run(monkeypatch, *command, *more, answer=answer)


@pytest.mark.parametrize("beginning", ["-h", "-v", "-x", "--", "x-"])
def test_JK_18_a_name_that_looks_like_an_option_is_a_name(beginning: str) -> None:
    kid = beginning + "A" * 41
    for arguments in ([kid], [kid, "--json"], ["--json", "--", kid], [kid, "--yes"]):
        with pytest.raises(CommandError, match="no key with that name"):
            call_command("disable_key", *arguments)
