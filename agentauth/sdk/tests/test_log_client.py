"""The client of the public log trusts what pinned keys signed and what the proofs show, and
nothing else.
"""

import asyncio
import ssl
import threading
from collections.abc import Coroutine
from dataclasses import dataclass, field
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest

from agentauth.protocol.errors import (
    AgentAuthError,
    ChainError,
    NoteError,
    NotFoundError,
    NotYetLoggedError,
    TemporarilyUnavailableError,
    UntrustedNoteError,
)
from agentauth.sdk import LogClient
from agentauth.sdk.tests.log_folders import (
    LOG_KEY,
    NEXT_KEY,
    STRANGER,
    WITNESS_KEY,
    Key,
    MadeLog,
    b64u,
)
from tests.certificates import self_signed

URL = "https://log.example"
LOG = MadeLog()
OTHER = MadeLog(seed="other history")
EVENT = LOG.shown(5)
Answer = TypeVar("Answer")


@dataclass
class Shown:
    """The registry's answers in order; the last one repeats."""

    answers: list[httpx.Response | Exception]
    asked: list[str] = field(default_factory=list)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        assert not {"authorization", "dpop"} & set(request.headers)
        self.asked.append(str(request.url))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def text(content: str) -> httpx.Response:
    return httpx.Response(200, text=content)


def client(
    *answers: httpx.Response | Exception, keys: tuple[Key, ...] = (LOG_KEY,)
) -> tuple[LogClient, Shown]:
    shown = Shown(list(answers))
    return LogClient(URL, [key.vkey for key in keys], transport=httpx.MockTransport(shown)), shown


def run(coroutine: Coroutine[Any, Any, Answer]) -> Answer:
    return asyncio.run(coroutine)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    async def pause(_attempt: int, _asked: int | None) -> None:
        return None

    monkeypatch.setattr("agentauth.sdk.log_client.pause", pause)


def test_newest_checkpoint_is_the_logs_with_trusted_cosignatures() -> None:
    log, shown = client(
        text(LOG.note(11, LOG_KEY, STRANGER, WITNESS_KEY)), keys=(LOG_KEY, WITNESS_KEY)
    )
    opened = run(log.checkpoint())
    assert (opened.checkpoint.size, opened.checkpoint.root) == (11, LOG.tree(0, 11))
    assert [(each.verifier.vkey, each.at) for each in opened.cosignatures] == [
        (WITNESS_KEY.vkey, 1_700_000_000)
    ]
    assert shown.asked == [f"{URL}/v1/audit/checkpoint"]


@pytest.mark.parametrize("keys", [(LOG_KEY,), (LOG_KEY, NEXT_KEY)])
def test_a_checkpoint_counts_by_pinned_keys_alone(keys: tuple[Key, ...]) -> None:
    for signers in ((STRANGER,), (WITNESS_KEY,)):
        log, _ = client(text(LOG.note(11, *signers)), keys=(*keys, WITNESS_KEY))
        with pytest.raises(UntrustedNoteError):
            run(log.checkpoint())
    log, _ = client(text(LOG.note(11, NEXT_KEY)), keys=keys)
    if NEXT_KEY in keys:
        assert run(log.checkpoint()).checkpoint.size == 11
    else:
        with pytest.raises(UntrustedNoteError):
            run(log.checkpoint())


def test_an_event_is_proved_to_be_in_the_log() -> None:
    log, shown = client(text(LOG.bundle(5, 11)))
    for event in (EVENT, EVENT | {"leaf_index": None}, EVENT | {"openings": {}}):
        proven = run(log.prove(event))
        assert (proven.index, proven.opened.checkpoint.size, proven.text) == (
            5,
            11,
            LOG.bundle(5, 11),
        )
    assert {*shown.asked} == {f"{URL}/v1/audit/proof/bundle?event={EVENT['id']}"}


OPENED = EVENT["openings"]["name"]


@pytest.mark.parametrize(
    "changes",
    [
        {"outcome": "denied"},
        {"more": 1},
        {"leaf_index": 4},
        {"leaf_index": 5.0},
        {"leaf_index": "5"},
        {"salt": b64u(bytes(32))},
        {"salt": b64u(bytes(31))},
        {"salt": None},
        {"salt": EVENT["salt"] + "="},
        {"data": None},
        {"data": {"n": float("nan")}},
        {"openings": {"name": OPENED | {"value": "Jorg"}}},
        {"openings": {"name": OPENED | {"salt": b64u(bytes(32))}}},
        {"openings": {"name": OPENED | {"note": "proved"}}},
        {"openings": {"name": {}}},
        {"openings": {"name": 1}},
        {"openings": [1]},
        {"openings": {"address": OPENED}},
    ],
)
def test_another_event_is_none_of_the_log_s(changes: dict[str, object]) -> None:
    log, _ = client(text(LOG.bundle(5, 11)))
    with pytest.raises(ChainError):
        run(log.prove(EVENT | changes))


@pytest.mark.parametrize(
    ("bundle", "refusal"),
    [
        (LOG.bundle(6, 11), ChainError),
        (OTHER.bundle(5, 11), ChainError),
        (LOG.bundle(5, 11).replace(LOG.note(11), LOG.note(11, STRANGER)), UntrustedNoteError),
        (LOG.bundle(5, 11).replace(LOG.note(11), ""), NoteError),
        (LOG.note(11), NoteError),
        ("<html>", NoteError),
    ],
)
def test_a_proof_that_shows_nothing_is_refused(bundle: str, refusal: type[AgentAuthError]) -> None:
    log, _ = client(text(bundle))
    with pytest.raises(refusal):
        run(log.prove(EVENT))


def test_too_early_says_when_to_come_again() -> None:
    body = {"error": "not_yet_logged", "error_description": "Soon.", "retry_after": 7}
    log, shown = client(httpx.Response(404, json=body))
    with pytest.raises(NotYetLoggedError) as raised:
        run(log.prove(EVENT))
    assert raised.value.fields["retry_after"] == 7
    assert len(shown.asked) == 1
    log, _ = client(httpx.Response(404, json={"error": "not_found", "error_description": "None."}))
    with pytest.raises(NotFoundError):
        run(log.prove(EVENT))


def test_what_may_heal_is_tried_again_and_then_said() -> None:
    away = httpx.Response(
        503, json={"error": "temporarily_unavailable", "error_description": "Away."}
    )
    log, shown = client(httpx.ConnectError("x"), away, text(LOG.note(11)))
    assert run(log.checkpoint()).checkpoint.size == 11
    assert len(shown.asked) == 3
    log, shown = client(httpx.ConnectError("x"))
    with pytest.raises(TemporarilyUnavailableError, match="cannot be reached"):
        run(log.checkpoint())
    assert len(shown.asked) == 4


async def no_pause(*_: object) -> None:
    """The tries follow each other without a wait."""


@pytest.mark.parametrize("expired", [False, True])
def test_a_certificate_that_is_not_trusted_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expired: bool
) -> None:
    certificate = self_signed(tmp_path, valid=timedelta(days=-1 if expired else 1) / 2)
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    if expired:
        monkeypatch.setattr(
            "agentauth.sdk.registry_http.ssl_context",
            lambda: ssl.create_default_context(cafile=certificate),
        )
    monkeypatch.setattr("agentauth.sdk.log_client.pause", no_pause)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, tmp_path / "proxy.key")
    server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        why = "has expired" if expired else r"is not trusted: .*SSL_CERT_FILE"
        with pytest.raises(TemporarilyUnavailableError, match=why):
            run(LogClient(f"https://localhost:{server.server_port}", [LOG_KEY.vkey]).checkpoint())
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    "vkeys", [[], [WITNESS_KEY.vkey], [LOG_KEY.vkey, Key("log", "other.example/v1/audit").vkey]]
)
def test_the_keys_are_those_of_one_log(vkeys: list[str]) -> None:
    with pytest.raises(ValueError, match="one log"):
        LogClient(URL, vkeys)
    with pytest.raises(NoteError):
        LogClient(URL, ["x"])
