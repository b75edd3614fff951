"""A slow or dead key backend costs only its own signatures, is not stormed, and recovers."""

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from django.utils import timezone
from prometheus_client import REGISTRY
from pytest_django.fixtures import Settings

from agentauth.protocol.errors import TemporarilyUnavailableError
from agentauth.protocol.keys import PrivateKey, PublicKey
from audit.services import SYSTEM
from kms import backends
from kms.backends import (
    BackendError,
    BusyError,
    CallRejectedError,
    PinnedSigner,
    ThrottledError,
    backend_calls,
    breaker_and_retries,
)
from kms.backends.backend_calls import call_backend
from kms.services import rotate_key, signer

ROOT = Path(__file__).resolve().parents[2]


class Home:
    """A scripted key backend: it returns a value, raises an error or waits for an event."""

    def __init__(self) -> None:
        self.asked = 0
        self.now: object = "signed"

    def __call__(self) -> object:
        self.asked += 1
        told = self.now.pop(0) if isinstance(self.now, list) else self.now
        if isinstance(told, threading.Event):
            told.wait(20)
            return "late"
        if isinstance(told, BaseException):
            raise told
        return told

    def told(self, times: int = 1) -> list[object]:
        """The results of consecutive calls: each a value, or the class of the error."""
        heard: list[object] = []
        for _ in range(times):
            try:
                heard.append(call_backend("there", self))
            except BackendError as error:
                heard.append(type(error))
        return heard


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setattr(backend_calls, "BACKOFF_SECONDS", 0.001)
    return Home()


class Maker:
    """A backend that is slow to create keys, or fails."""

    def __init__(self, *, fails: bool) -> None:
        self.fails, self.asked, self.key = fails, 0, PrivateKey.generate()

    def create(self, **_wanted: str) -> str:
        self.asked += 1
        if self.fails:
            raise BusyError("Nobody knows whether a key was made.")
        time.sleep(backend_calls.DEADLINE_SECONDS + 0.2)
        return "vault:made"

    def open(self, _uri: str) -> "Maker":
        return self

    def public(self) -> PublicKey:
        return self.key.public


@pytest.mark.parametrize("fails", [True, False], ids=["fails", "is slow"])
def test_a_key_is_asked_for_once_however_long_it_takes(
    fails: bool, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second try would make a second key, and hardware modules need seconds."""
    maker, settings.KEY_BACKEND = Maker(fails=fails), "vault"
    monkeypatch.setattr(backends, "_home", lambda _scheme: maker)
    for _ in range(2 * breaker_and_retries.RETRY_COSTS):
        # Fill the retry budget, so that only the rule can prevent a retry.
        call_backend("vault", maker.public)
    if fails:
        with pytest.raises(BusyError):
            backends.create(purpose="token")
    else:
        assert backends.create(purpose="token") == ("vault:made", maker.key.public)
    assert maker.asked == 1


@pytest.fixture
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No call is retried."""
    monkeypatch.setattr(backend_calls, "TRIES", 1)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The breaker's clock, which moves only when the test moves it."""
    moved = [1000.0]
    monkeypatch.setattr(breaker_and_retries, "time", SimpleNamespace(monotonic=lambda: moved[0]))
    return moved


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """What a backend waits for; set at the end to end its threads. Callers wait for 0.2 s."""
    monkeypatch.setattr(backend_calls, "DEADLINE_SECONDS", 0.2)
    held = threading.Event()
    yield held
    held.set()


def test_a_file_is_read_by_who_asks_and_nothing_is_kept_of_it() -> None:
    assert call_backend("file", threading.current_thread) is threading.current_thread()
    assert backend_calls._callers == {}


def test_RF_32_deadline_ends_the_wait_and_a_late_answer_is_dropped(
    home: Home, gate: threading.Event
) -> None:
    home.now = [gate, "mine"]
    with pytest.raises(BusyError, match="in time"):
        call_backend("there", home)
    # The backend has not answered yet, but its caller has stopped waiting.
    assert not gate.is_set()
    gate.set()
    assert call_backend("there", home) == "mine"


def test_RF_32_a_signature_that_comes_late_is_discarded(gate: threading.Event) -> None:
    key, signed = PrivateKey.generate("EdDSA"), threading.Event()

    class Slow:
        def public(self) -> object:
            raise AssertionError

        def sign(self, message: bytes, alg: str) -> bytes:
            gate.wait(20)
            signed.set()
            return key.sign(message)

    signing = PinnedSigner("there:key", Slow(), key.public)  # type: ignore[arg-type]
    with pytest.raises(BusyError):
        signing.sign(b"first")
    assert not signed.is_set()
    gate.set()
    assert signed.wait(20)
    # A late signature returned for this call would not verify.
    key.public.verify(b"second", signing.sign(b"second"), alg="EdDSA")


def test_a_busy_home_is_asked_again_where_others_were_answered(home: Home) -> None:
    assert home.told(6) == ["signed"] * 6
    home.now = [BusyError("x"), "signed"]
    assert home.told() == ["signed"]
    assert home.asked == 8


def test_at_most_two_more_tries(home: Home) -> None:
    home.told(30)
    home.asked, home.now = 0, ThrottledError("x")
    assert home.told() == [ThrottledError]
    assert home.asked == 3


def test_what_it_refuses_is_not_asked_again(home: Home) -> None:
    home.told(30)
    home.asked, home.now = 0, BackendError("denied")
    assert home.told() == [BackendError]
    assert home.asked == 1


def test_with_little_time_left_nothing_is_tried_again(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.told(30)
    monkeypatch.setattr(backend_calls, "DEADLINE_SECONDS", backend_calls.WORTHWHILE_SECONDS)
    home.asked, home.now = 0, BusyError("x")
    home.told()
    assert home.asked == 1


def test_KM_2_throttling_causes_no_retry_storm_and_is_not_an_outage(home: Home) -> None:
    home.now = ThrottledError("x")
    for calls in range(1, 300):
        assert home.told() == [ThrottledError]
        assert home.asked <= 1.2 * calls
    # The retry budget is used.
    assert home.asked > 1.15 * 299
    home.now = "signed"
    assert home.told() == ["signed"]


def test_KM_1_a_home_that_does_not_answer_is_asked_no_more_and_says_when(
    home: Home, clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    home.now = BusyError("x")
    assert home.told(5) == [BusyError] * 3 + [CallRejectedError] * 2
    assert home.asked == 3
    assert caplog.messages[0].startswith("the key backend 'there' does not answer")
    with pytest.raises(CallRejectedError) as refused:
        call_backend("there", home)
    assert refused.value.retry_after in {2, 3}
    clock[0] += 3
    home.now = "signed"
    assert home.told(2) == ["signed"] * 2
    assert caplog.messages[1:] == ["the key backend 'there' answers again"]


def test_answer_between_outages_resets_the_count(home: Home, once: None) -> None:
    away = BusyError("x")
    home.now = [
        away,
        away,
        "signed",
        away,
        away,
        BackendError("denied"),
        away,
        away,
        ThrottledError("x"),
        away,
    ]
    assert CallRejectedError not in home.told(10)


def test_one_tries_and_the_pause_grows_until_it_answers(home: Home, clock: list[float]) -> None:
    home.now = BusyError("x")
    home.told(3)
    for longest in (3, 6, 12, 24, 30, 30, 30):
        assert home.told() == [CallRejectedError]
        clock[0] += longest / 2 - 0.01
        assert home.told() == [CallRejectedError]
        clock[0] += longest / 2 + 0.01
        assert home.told(2) == [BusyError, CallRejectedError]
    clock[0] += 30
    home.now = BackendError("denied")
    # Any answer proves that the backend is there.
    assert home.told(2) == [BackendError] * 2
    home.now = BusyError("x")
    home.told(3)
    clock[0] += 3
    assert home.told() == [BusyError]


def test_of_many_at_once_one_tries(home: Home, clock: list[float], gate: threading.Event) -> None:
    home.now = BusyError("x")
    home.told(3)
    clock[0] += 3
    home.asked, home.now = 0, gate
    with ThreadPoolExecutor(16) as many:
        heard = list(many.map(lambda _: home.told()[0], range(16)))
    assert sorted(map(str, heard)) == sorted([str(BusyError)] + [str(CallRejectedError)] * 15)
    assert home.asked == 1


def test_calls_that_began_before_say_nothing_of_how_it_is_now(clock: list[float]) -> None:
    tested = breaker_and_retries.Breaker("there")
    for _ in range(4):
        assert tested.admit() is False
    for _ in range(3):
        tested.report(answered=False, is_probe=False)
    tested.report(answered=True, is_probe=False)
    assert tested.is_open
    clock[0] += 3
    assert tested.admit() is True
    tested.report(answered=False, is_probe=False)
    tested.report(answered=None, is_probe=True)
    # The probe found no free thread, so another call may probe.
    assert tested.admit() is True
    tested.report(answered=True, is_probe=True)
    assert not tested.is_open


def test_breaker_still_pauses_after_a_long_outage(clock: list[float]) -> None:
    tested = breaker_and_retries.Breaker("there")
    for _ in range(3):
        tested.report(answered=False, is_probe=False)
    for _ in range(1_100):
        clock[0] += 30
        assert tested.admit() is True
        tested.report(answered=False, is_probe=True)
    with pytest.raises(CallRejectedError):
        tested.admit()


def test_waiting_key_service_calls_are_bounded_and_others_fail_fast(
    home: Home, gate: threading.Event, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.WEB_THREADS = 8
    monkeypatch.setattr(backend_calls, "DEADLINE_SECONDS", 10)
    before, home.now = threading.active_count(), gate
    with ThreadPoolExecutor(12) as many:
        waiting = [many.submit(home.told) for _ in range(4)]
        while home.asked < 4:
            pass
        assert home.told(4) == [CallRejectedError] * 4
        assert threading.active_count() <= before + 4 + 4
        gate.set()
        assert [each.result() for each in waiting] == [["late"]] * 4
    home.now = "signed"
    # A full queue was not an outage.
    assert home.told(9) == ["signed"] * 9
    assert threading.active_count() <= before + 4


def _after(script: str) -> subprocess.CompletedProcess[str]:
    begin = (
        "import django, os, threading, time; django.setup()\n"
        "from kms.backends.backend_calls import call_backend\n"
    )
    env = {"DJANGO_SETTINGS_MODULE": "agentauth.settings", "PATH": ""}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", begin + script],
        cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def test_a_process_that_is_forked_off_has_threads_of_its_own() -> None:
    done = _after(
        "assert call_backend('there', lambda: 1) == 1\n"
        "pid = os.fork()\n"
        "if pid == 0: os._exit(call_backend('there', lambda: 7))\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))"
    )
    assert (done.stdout, done.stderr) == ("7\n", "")


def test_a_library_that_hangs_does_not_keep_the_process_from_ending() -> None:
    done = _after(
        "try: call_backend('there', threading.Event().wait)\nexcept Exception as error: "
        "print(type(error).__name__)"
    )
    assert (done.stdout, done.returncode) == ("BusyError\n", 0)


def test_each_outcome_is_counted(home: Home, once: None, clock: list[float]) -> None:
    def counted() -> dict[str, float]:
        outcomes = ("ok", "throttled", "refused", "away", "open")
        names = {each: {"home": "there", "outcome": each} for each in outcomes}
        return {
            each: REGISTRY.get_sample_value("agentauth_key_calls_total", names[each]) or 0
            for each in names
        }

    def measured() -> float:
        return REGISTRY.get_sample_value("agentauth_key_call_seconds_count", {"home": "there"}) or 0

    def away() -> float | None:
        return REGISTRY.get_sample_value("agentauth_key_home_away", {"home": "there"})

    before, calls = counted(), measured()
    home.now = ["signed", ThrottledError("x"), BackendError("x"), *[BusyError("x")] * 3]
    home.told(3)
    assert away() == 0
    home.told(5)
    assert away() == 1
    after = counted()
    assert {each: after[each] - before[each] for each in after} == {
        "ok": 1, "throttled": 1, "refused": 1, "away": 3, "open": 2,
    }  # fmt: skip
    assert measured() - calls == 6


@pytest.fixture
def no_home(vault: str, settings: Settings) -> Callable[[], None]:
    """A key in Transit; after a call, its server is unreachable."""
    rotate_key(purpose="token", actor=SYSTEM, now=timezone.now())

    def away() -> None:
        settings.VAULT = settings.VAULT | {"ADDR": "http://127.0.0.1:1"}

    return away


@pytest.mark.django_db
def test_KM_1_outage_is_logged_once_and_callers_learn_when_to_retry(
    no_home: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    no_home()
    signing = signer(purpose="token", now=timezone.now())
    for _ in range(3):
        with pytest.raises(TemporarilyUnavailableError) as refused:
            signing.sign(b"m")
        assert refused.value.fields == {}
    caplog.clear()
    with pytest.raises(TemporarilyUnavailableError) as refused:
        signing.sign(b"m")
    assert refused.value.fields["retry_after"] in {2, 3}
    assert [each for each in caplog.records if each.levelno >= logging.ERROR] == []
