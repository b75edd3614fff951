"""Delegated signing: a process signs with its own key once verifiers know it, while certified."""

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import time_machine
from pytest_django.fixtures import Settings

from agentauth.protocol.errors import TemporarilyUnavailableError
from kms import token_signer as delegation
from kms.lifetimes import HANDOVER, PUBLISHED_BEFORE_USE
from kms.models import Key, KeyCertificate
from kms.process_key_certificates import CERTIFIED_FOR, revoke_certificate, token_keys
from kms.services import disable_key, promote_due_keys, rotate_key
from kms.signing_rate import SigningRateLimiter
from kms.state_change_publisher import KEY_CHANGES
from kms.tests.test_keys import ACTOR, NOW
from kms.token_signer import KNOWN_FOR, ProcessKeys, SignerChoice, token_signer, turn_to_sign

pytestmark = pytest.mark.django_db
SECOND = timedelta(seconds=1)


def now_run(work: Callable[[], None]) -> None:
    work()


@pytest.fixture(autouse=True)
def clock() -> Iterator[time_machine.Traveller]:
    with time_machine.travel(NOW, tick=False) as traveller:
        yield traveller


class Process:
    """A process that signs, by a clock that the test sets."""

    def __init__(self, clock: time_machine.Traveller, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = clock
        self.patch = monkeypatch
        self.delegate = ProcessKeys(now_run)
        self.chosen = SignerChoice()

    def kid(self, after: timedelta, *, life: int = 900, age: int = 0) -> str:
        """The key that signs a token of this life and age (s), at this time after the beginning."""
        now = NOW + after
        self.clock.move_to(now)
        self.patch.setattr(delegation, "DELEGATE", self.delegate)
        self.patch.setattr(delegation, "CHOSEN", self.chosen)
        issued_at = int(now.timestamp()) - age
        found = token_signer(issued_at=issued_at, expires_at=issued_at + life, now=now)
        # Verifiers must know the signing key at this moment.
        assert found.kid in token_keys(now=now)
        return found.kid


@pytest.fixture
def root(settings: Settings) -> str:
    settings.TOKEN_SIGNING = "delegated"
    return rotate_key(purpose="token", actor=ACTOR, now=NOW).kid


@pytest.fixture
def process(clock: time_machine.Traveller, monkeypatch: pytest.MonkeyPatch, root: str) -> Process:
    return Process(clock, monkeypatch)


def at(after: timedelta) -> int:
    return int((NOW + after).timestamp())


def kids() -> list[str]:
    return list(
        KeyCertificate.objects.order_by("not_before", "serial").values_list("kid", flat=True)
    )


def test_JK_14_certificate_is_published_long_enough_before_key_signs(
    process: Process, root: str
) -> None:
    assert timedelta(seconds=120) <= PUBLISHED_BEFORE_USE
    assert process.kid(timedelta()) == root
    assert process.kid(PUBLISHED_BEFORE_USE - SECOND) == root
    assert [process.kid(PUBLISHED_BEFORE_USE)] == kids()


def test_direct_is_the_default_and_certifies_nothing(
    process: Process, root: str, settings: Settings
) -> None:
    for word in ("direct", "Delegated", ""):
        settings.TOKEN_SIGNING = word
        assert process.kid(PUBLISHED_BEFORE_USE) == root
    assert kids() == []


@pytest.mark.parametrize("way", ["direct", "delegated"])
def test_signer_is_reread_each_second_and_then_sees_outside_changes(
    process: Process, root: str, settings: Settings, django_assert_num_queries: Any, way: str
) -> None:
    settings.TOKEN_SIGNING = way
    process.kid(timedelta())
    start = PUBLISHED_BEFORE_USE
    first = process.kid(start)
    assert (first == root) is (way == "direct")
    # Another process disables it, so this process hears nothing of it.
    Key.objects.update(state=Key.State.DISABLED, disabled_at=NOW + start)
    with django_assert_num_queries(0):
        assert (
            token_signer(issued_at=at(start), expires_at=at(start) + 900, now=NOW + start).kid
            == first
        )
    with pytest.raises(TemporarilyUnavailableError):
        process.kid(start + KNOWN_FOR)


@pytest.mark.parametrize("way", ["direct", "delegated"])
def test_a_change_of_this_process_counts_at_once(
    process: Process, root: str, settings: Settings, way: str
) -> None:
    settings.TOKEN_SIGNING = way
    process.kid(timedelta())
    process.kid(PUBLISHED_BEFORE_USE)
    disable_key(kid=root, actor=ACTOR, now=NOW + PUBLISHED_BEFORE_USE, even_last=True)
    with pytest.raises(TemporarilyUnavailableError):
        process.kid(PUBLISHED_BEFORE_USE)


def test_it_is_renewed_long_before_its_end_without_a_gap(process: Process, root: str) -> None:
    used = [process.kid(timedelta(minutes=minute)) for minute in range(6 * 60)]
    assert used[:3] == [root] * 3
    assert root not in used[3:]
    assert list(dict.fromkeys(used[3:])) == kids()[: len(set(used[3:]))]
    # A new key after a third to a half of its life, and few valid ones at a time.
    assert 6 <= len(kids()) <= 11
    assert KeyCertificate.objects.filter(not_after__gt=NOW + timedelta(hours=6)).count() <= 4


def test_a_later_key_of_another_purpose_ends_nothing(process: Process) -> None:
    process.kid(timedelta())
    rotate_key(purpose="audit", actor=ACTOR, now=NOW + PUBLISHED_BEFORE_USE)
    assert process.kid(PUBLISHED_BEFORE_USE + HANDOVER + SECOND) == kids()[0]


def test_KM_10_it_signs_nothing_beyond_its_certificate(process: Process, root: str) -> None:
    process.kid(timedelta())
    # Claims of an earlier call that is signed again may be older than the certificate.
    assert process.kid(PUBLISHED_BEFORE_USE, age=800) == root
    assert process.kid(PUBLISHED_BEFORE_USE, age=100) == kids()[0]
    late = CERTIFIED_FOR - timedelta(seconds=600)
    process.delegate._run = lambda _work: None
    assert process.kid(late, life=600) == kids()[0]
    assert process.kid(late, life=601) == root


def test_KM_2_without_a_certified_key_each_waits_for_its_turn_again(
    process: Process, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pace = SigningRateLimiter()
    monkeypatch.setattr(delegation, "PACE", pace)
    pace._rate, pace._lowered_at = 1.0, time.monotonic()
    process.kid(timedelta())
    assert process.kid(PUBLISHED_BEFORE_USE) == kids()[0]
    # A certified key never waits for a turn.
    for _ in range(3):
        with turn_to_sign():
            pass
    process.delegate._run = lambda _work: None
    assert process.kid(CERTIFIED_FOR + SECOND) == root
    with turn_to_sign():
        pass
    with pytest.raises(TemporarilyUnavailableError), turn_to_sign():
        pass


def test_a_change_of_this_process_counts_from_its_commit_too(
    root: str, django_capture_on_commit_callbacks: Any
) -> None:
    """A read between the change and its commit would cache the old state."""
    with django_capture_on_commit_callbacks(execute=True):
        disable_key(kid=root, actor=ACTOR, now=NOW, even_last=True)
        before = KEY_CHANGES.number
    assert KEY_CHANGES.number == before + 1


def test_KM_14_key_service_outage_at_renewal_keeps_key_until_its_end(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    process.kid(timedelta())
    tried = []

    def away(*_args: object, **_more: object) -> None:
        tried.append(1)
        raise TemporarilyUnavailableError

    monkeypatch.setattr(delegation, "certify", away)
    monkeypatch.setattr(delegation, "signer", away)
    for minute in range(3, 105):
        assert process.kid(timedelta(minutes=minute)) == kids()[0]
    assert tried
    with pytest.raises(TemporarilyUnavailableError):
        process.kid(timedelta(minutes=106))
    # Not at every request: a failing service is tried only now and then.
    tried.clear()
    for second in range(60):
        with pytest.raises(TemporarilyUnavailableError):
            process.kid(timedelta(minutes=110, seconds=second))
    assert len(tried) <= 60 + 4


def test_a_defect_while_certifying_is_tried_again_and_hurts_no_request(
    process: Process, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(delegation, "certify", lambda *_args, **_more: 1 / 0)
        assert process.kid(timedelta()) == root
    assert process.kid(timedelta(seconds=41)) == root
    assert len(kids()) == 1


def test_JK_14_KM_12_certifying_key_rotation_hands_over_without_a_gap(
    process: Process, root: str
) -> None:
    process.kid(timedelta())
    first = process.kid(PUBLISHED_BEFORE_USE)
    following = rotate_key(purpose="token", actor=ACTOR, now=NOW + PUBLISHED_BEFORE_USE).kid
    switch = 2 * PUBLISHED_BEFORE_USE
    promote_due_keys(now=NOW + switch)
    assert process.kid(switch) == first
    assert process.kid(switch + PUBLISHED_BEFORE_USE - SECOND) == first
    second = process.kid(switch + PUBLISHED_BEFORE_USE)
    assert (kids(), KeyCertificate.objects.get(kid=second).issuer.kid) == (
        [first, second],
        following,
    )


def test_JK_14_key_of_a_retired_certifier_signs_only_while_verifiable(
    process: Process, root: str
) -> None:
    process.kid(timedelta())
    first = process.kid(PUBLISHED_BEFORE_USE)
    following = rotate_key(purpose="token", actor=ACTOR, now=NOW + PUBLISHED_BEFORE_USE).kid
    process.delegate._run = lambda _work: None
    # Whether or not the job has recorded the switch.
    switch = 2 * PUBLISHED_BEFORE_USE
    assert process.kid(switch + HANDOVER - SECOND) == first
    assert first in token_keys(now=NOW + switch + HANDOVER - SECOND + timedelta(seconds=900))
    assert process.kid(switch + HANDOVER) == following
    assert root != following


def test_JK_18_a_revoked_certificate_is_not_signed_with_once_more(
    process: Process, root: str
) -> None:
    process.kid(timedelta())
    first = process.kid(PUBLISHED_BEFORE_USE)
    serial = str(KeyCertificate.objects.get(kid=first).serial)
    revoke_certificate(serial=serial, actor=ACTOR, now=NOW + PUBLISHED_BEFORE_USE)
    assert process.kid(PUBLISHED_BEFORE_USE) == root
    # Another certified key takes its place.
    assert process.kid(2 * PUBLISHED_BEFORE_USE) == kids()[1]


def test_JK_18_keys_certified_by_a_disabled_key_sign_nothing(process: Process, root: str) -> None:
    process.kid(timedelta())
    process.kid(PUBLISHED_BEFORE_USE)
    disable_key(kid=root, actor=ACTOR, now=NOW + PUBLISHED_BEFORE_USE, even_last=True)
    with pytest.raises(TemporarilyUnavailableError):
        process.kid(PUBLISHED_BEFORE_USE)
    assert not Key.objects.exclude(state="disabled").exists()


def test_two_processes_hold_two_keys(
    process: Process, clock: time_machine.Traveller, root: str
) -> None:
    other = Process(clock, process.patch)
    assert [process.kid(timedelta()), other.kid(timedelta())] == [root, root]
    found = {process.kid(PUBLISHED_BEFORE_USE), other.kid(PUBLISHED_BEFORE_USE)}
    assert found == set(kids())
    assert len(found) == 2


def test_a_clock_that_went_back_signs_with_the_key_itself(process: Process, root: str) -> None:
    process.kid(timedelta())
    assert process.kid(PUBLISHED_BEFORE_USE) != root
    assert process.kid(timedelta(seconds=5)) == root


def test_the_private_key_shows_nowhere_and_is_not_carried_away(process: Process) -> None:
    process.kid(timedelta())
    [held] = process.delegate._held
    secret = held.signer._key._key.private_bytes_raw()  # type: ignore[union-attr]
    for text in (repr(held), repr(process.delegate), repr(held.signer), str(held.signer)):
        assert secret.hex() not in text
        assert repr(secret) not in text
    with pytest.raises(TypeError):
        pickle.dumps(held)


def test_a_child_of_a_fork_holds_nothing() -> None:
    """In a separate process, because this one has threads."""
    script = """
import os, django; django.setup()
from kms.token_signer import DELEGATE
DELEGATE._held = (object(),); DELEGATE._renewing = True
DELEGATE._lock.acquire()
child = os.fork()
if child == 0:
    reset = DELEGATE._held == () and not DELEGATE._renewing
    os._exit(0 if reset and DELEGATE._lock.acquire(timeout=1) else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    env = os.environ | {"DJANGO_SETTINGS_MODULE": "agentauth.settings"}
    root = Path(__file__).resolve().parents[2]
    assert (
        subprocess.run([sys.executable, "-c", script], env=env, cwd=root, check=False).returncode
        == 0
    )
