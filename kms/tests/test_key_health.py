"""`check_keys` finds each key that differs from its record, and says how."""

import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import hvac
import pytest
from django.core.management import call_command
from pytest_django.fixtures import Settings

from agentauth.protocol.token import MAX_SIGNING_INPUT
from audit.models import Event
from audit.tests.command_output import output_of
from kms import backends
from kms.backends.file import _KeyFile
from kms.models import Key
from kms.services import disable_key, ensure_key, rotate_key
from kms.tests.test_keys import ACTOR, NOW
from tests import openbao

pytestmark = pytest.mark.django_db


def made() -> Key:
    """Make a key for each purpose; returns that of tokens."""
    for purpose in Key.Purpose.values:
        ensure_key(purpose=purpose, actor=ACTOR, now=NOW)
    return Key.objects.get(purpose="token")


def checked() -> tuple[int, dict[str, Any]]:
    """The exit code, and the output."""
    out, events = StringIO(), Event.objects.count()
    code = 0
    try:
        call_command("check_keys", "--json", stdout=out)
    except SystemExit as ended:
        code = int(str(ended.code))
    assert Event.objects.count() == events
    return code, json.loads(out.getvalue())


def assert_only_bad(key: Key, said: str) -> None:
    code, found = checked()
    assert (code, found["ok"], list(found["bad"])) == (1, False, [key.kid])
    assert said in found["bad"][key.kid]
    assert len(found["good"]) == len(Key.Purpose.values) - 1


def test_good_keys_are_reported_good_and_the_next_key_is_checked_too() -> None:
    made()
    rotate_key(purpose="token", actor=ACTOR, now=NOW)
    code, found = checked()
    assert (code, found["ok"], found["bad"]) == (0, True, {})
    assert sorted(found["good"]) == sorted(Key.objects.values_list("kid", flat=True))


def test_a_key_that_is_gone_is_named(key_directory: Path) -> None:
    key = made()
    (key_directory / key.uri.removeprefix("file:")).unlink()
    assert_only_bad(key, "")


@pytest.mark.parametrize(
    ("algorithm", "said"), [("EdDSA", "another key"), ("ES256", "a key for ES256")]
)
def test_another_key_in_its_place_is_named(algorithm: str, said: str, settings: Settings) -> None:
    key = made()
    settings.KEY_ALGORITHM = algorithm
    key.uri, _ = backends.create(purpose="token")
    key.save()
    assert_only_bad(key, said)


def test_a_key_that_gives_its_public_half_and_signs_nothing_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = made()
    whole = backends.open_signer

    def opened(uri: str, public: Any) -> Any:
        if uri == key.uri:
            raise backends.BackendError("no right to sign")
        return whole(uri, public)

    monkeypatch.setattr(backends, "open_signer", opened)
    assert_only_bad(key, "no right to sign")


def test_KM_9_a_key_that_signs_nothing_as_long_as_a_receipt_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made()
    sign = _KeyFile.sign

    def short(self: Any, message: bytes, alg: Any) -> bytes:
        if len(message) > MAX_SIGNING_INPUT:
            raise backends.BackendError("too long for this home")
        return sign(self, message, alg)

    monkeypatch.setattr(_KeyFile, "sign", short)
    receipts = Key.objects.get(purpose="receipt")
    assert_only_bad(
        receipts,
        "not messages of 65536 bytes, which purpose receipt may need: too long for this home",
    )


def test_a_purpose_without_a_key_is_named_and_a_disabled_key_is_not_asked(
    key_directory: Path,
) -> None:
    key = made()
    disable_key(kid=key.kid, actor=ACTOR, now=NOW, even_last=True)
    (key_directory / key.uri.removeprefix("file:")).unlink()
    code, found = checked()
    assert (code, list(found["bad"]), len(found["good"])) == (1, ["token"], 2)


def test_for_people_each_key_is_a_line() -> None:
    made()
    assert output_of("check_keys").count(": ok\n") == len(Key.Purpose.values)


SPOILED: dict[str, Callable[[Any, str], object]] = {
    "exportable": lambda transit, name: transit.update_key_configuration(name, exportable=True),
    "gone": lambda transit, name: (
        transit.update_key_configuration(name, deletion_allowed=True),
        transit.delete_key(name),
    ),
}


@pytest.mark.parametrize("how", SPOILED)
def test_in_transit_a_key_that_must_not_be_used_is_named(
    vault: str, settings: Settings, how: str
) -> None:
    settings.KEY_BACKEND = "vault"
    key = made()
    assert checked()[0] == 0
    transit = hvac.Client(url=vault, token=openbao.ROOT_TOKEN).secrets.transit
    SPOILED[how](transit, key.uri.rpartition("/")[2])
    assert_only_bad(key, "")


def test_a_home_that_is_away_is_said_to_be_so_of_each_of_its_keys(
    vault: str, settings: Settings
) -> None:
    settings.KEY_BACKEND = "vault"
    made()
    settings.VAULT["ADDR"] = "http://127.0.0.1:1"
    code, found = checked()
    assert (code, found["good"], len(found["bad"])) == (1, [], 3)
    assert all("does not answer" in problem for problem in found["bad"].values())
    assert openbao.ROOT_TOKEN not in json.dumps(found)
