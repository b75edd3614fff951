"""A wrong clock or address is explained: what is wrong, by how much, and what to do."""

import email.utils
import logging
import time
from pathlib import Path

import httpx
import pytest

from agentauth.sdk import RegistryError
from agentauth.sdk.clock_check import clock_offset
from agentauth.sdk.errors import ClockError
from agentauth.sdk.tests.fake_registry import (
    GRANT_ID,
    SP_ID,
    URL,
    FakeRegistry,
    error,
    grant,
    registered,
    run,
)


def date(offset: float) -> dict[str, str]:
    """The Date of a server whose clock is behind ours by `offset` seconds."""
    return {"Date": email.utils.formatdate(time.time() - offset, usegmt=True)}


@pytest.mark.parametrize(
    ("offset", "said"),
    [
        (250, "4 min 10 s ahead of the clock of the registry at"),
        (-250, "4 min 10 s behind the clock of the registry at"),
        (7_320, "2 h 2 min ahead of"),
    ],
)
def test_a_clock_that_is_off_is_explained(
    registry: FakeRegistry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    offset: int,
    said: str,
) -> None:
    monkeypatch.setattr(time, "time", lambda: float(registry.now))
    client = registered(registry, tmp_path)
    registry.script = lambda _request: error(401, "invalid_dpop_proof", date(offset), reason="iat")
    with pytest.raises(ClockError, match=said) as off:
        run(client.get_grant(GRANT_ID))
    assert off.value.code == "invalid_dpop_proof"
    assert off.value.fields["offset"] == offset


def test_a_service_provider_that_refuses_by_time_is_explained(
    registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: float(registry.now))
    client = registered(registry, tmp_path)
    registry.grants = [grant()]
    challenge = 'DPoP error="invalid_dpop_proof", algs="EdDSA"'
    registry.script = lambda request: (
        error(
            401,
            "invalid_dpop_proof",
            {"WWW-Authenticate": challenge, **date(-180)},
            reason="iat",
        )
        if request.url.host == "api.sp.example"
        else None
    )
    with pytest.raises(ClockError, match="3 min 0 s behind the clock of the service provider"):
        run(client.call(SP_ID, "GET", "/v1/x"))


def test_a_refusal_by_time_with_equal_clocks_stays_what_it_is(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    client = registered(registry, tmp_path)
    registry.script = lambda _request: error(401, "invalid_dpop_proof", date(0), reason="iat")
    with pytest.raises(Exception, match="A sentence") as refused:
        run(client.get_grant(GRANT_ID))
    assert not isinstance(refused.value, ClockError)


def test_a_clock_that_runs_away_is_warned_about_once(
    registry: FakeRegistry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client = registered(registry, tmp_path)
    registry.script = lambda _request: httpx.Response(200, json=grant(), headers=date(45))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            run(client.get_grant(GRANT_ID))
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "45 s ahead" in warning or "44 s ahead" in warning or "46 s ahead" in warning


@pytest.mark.parametrize(
    "value", ["", "yesterday", "Mon, 99 Foo 2026 00:00:00 GMT", "9" * 70, "Thu, 01 Jan 1970"]
)
def test_a_malformed_date_says_nothing(value: str) -> None:
    assert clock_offset({"Date": value}) is None or value.startswith("Thu")


@pytest.mark.parametrize("status", [200, 404, 502])
def test_a_wrong_address_is_explained(registry: FakeRegistry, tmp_path: Path, status: int) -> None:
    client = registered(registry, tmp_path)
    registry.script = lambda _request: httpx.Response(status, html="<h1>Welcome to nginx</h1>")
    with pytest.raises(RegistryError, match=f"{URL} answered {status} with text/html.*address"):
        run(client.get_grant(GRANT_ID))
