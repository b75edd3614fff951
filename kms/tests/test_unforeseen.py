"""Any exception of a library or the system becomes a backend error without its text."""

import threading

import pytest
from pytest_django.fixtures import Settings

from agentauth.protocol.keys import PublicKey
from kms import backends
from kms.backends import BackendError, CallRejectedError
from kms.backends.backend_calls import call_backend
from kms.tests.test_backend_calls import Home, Maker
from kms.tests.test_backend_calls import home as home  # noqa: PLC0414 — a fixture


def test_KM_14_unexpected_library_error_is_no_answer_and_hides_text(
    home: Home,
) -> None:
    home.now = FileNotFoundError("/run/secrets/token of-a-test")
    for _ in range(3):
        with pytest.raises(
            BackendError, match=r"^there: FileNotFoundError at test_backend_calls\.py:\d+\.$"
        ) as raised:
            call_backend("there", home)
        assert raised.value.__suppress_context__
    assert home.told() == [CallRejectedError]


def test_KM_14_so_it_is_where_a_key_is_made_and_where_a_file_is_read(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Odd:
        def create(self, **_wanted: str) -> str:
            raise PermissionError("a secret")

    monkeypatch.setattr(backends, "_home", lambda _scheme: Odd())
    settings.KEY_BACKEND = "vault"
    with pytest.raises(BackendError, match=r"^vault: PermissionError at "):
        backends.create(purpose="token")
    with pytest.raises(BackendError, match=r"^file: ZeroDivisionError at "):
        call_backend("file", lambda: 1 / 0)


def test_KM_14_a_key_that_was_made_in_vain_is_named(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Maker(fails=False)
    made.create = lambda **_wanted: "vault:transit/made"  # type: ignore[method-assign]
    made.public = refused  # type: ignore[method-assign]
    monkeypatch.setattr(backends, "_home", lambda _scheme: made)
    settings.KEY_BACKEND = "vault"
    with pytest.raises(
        BackendError,
        match=r"^not allowed A key was created but cannot be used: vault:transit/made$",
    ):
        backends.create(purpose="token")


def refused() -> PublicKey:
    raise BackendError("not allowed")


def test_failed_thread_start_makes_no_call_and_frees_its_slot(
    home: Home, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.WEB_THREADS = 2
    with monkeypatch.context() as patch:
        patch.setattr(
            threading.Thread, "start", lambda _self: (_ for _ in ()).throw(RuntimeError())
        )
        assert home.told(2) == [CallRejectedError] * 2
    assert home.told(2) == ["signed"] * 2
    assert home.asked == 2
