"""All that a witness can do wrong, on purpose or not: none of it is kept, none stops the log."""

import contextlib
import socket
import ssl
import threading
import time
from pathlib import Path

import pytest

from agentauth.protocol.checkpoint import cosign_checkpoint
from agentauth.protocol.keys import LocalSigner, PrivateKey
from agentauth.protocol.signed_notes import Signature, parse_note, parse_signatures
from agentauth.sdk.tests.witness_cast import NAME
from audit.checkpoints import witness_client
from audit.checkpoints.witness_client import MAX_ANSWER_BYTES, Outcome, Result, Witness
from audit.tests.fake_witness import KEY, LOG, OTHER, VERIFIER, answering, ask, http, size_is
from tests.certificates import certificate_for
from tests.time_limits import within

LINE = cosign_checkpoint(LOG.checkpoint(5), name=NAME, signer=KEY, at=1_700_000_000).line
STRANGER = cosign_checkpoint(
    LOG.checkpoint(5), name="stranger", signer=LocalSigner(PrivateKey.generate()), at=1
).line


def test_lines_of_strangers_are_left_out() -> None:
    with answering(http(200, STRANGER + LINE + STRANGER)) as fake:
        assert ask(fake.witness, 5) == Outcome(Result.COSIGNED, LINE, 1_700_000_000, 5)


def timeless() -> str:
    """A valid signature with time zero."""
    value = bytes(8) + KEY.sign(b"cosignature/v1\ntime 0\n" + LOG.checkpoint(5).text.encode())
    return Signature(NAME, VERIFIER.key_id, value).line


def forged() -> str:
    [good] = parse_signatures(LINE)
    return Signature(NAME, VERIFIER.key_id, good.value[:-1] + bytes([good.value[-1] ^ 1])).line


BAD_ANSWERS = {
    "nothing": http(200),
    "a stranger's line alone": http(200, STRANGER),
    "a line of another checkpoint": http(
        200, cosign_checkpoint(LOG.checkpoint(6), name=NAME, signer=KEY, at=1).line
    ),
    "a line of another tree": http(
        200, cosign_checkpoint(OTHER.checkpoint(5), name=NAME, signer=KEY, at=1).line
    ),
    "a forged line": http(200, forged()),
    "a good line and a forged one": http(200, LINE + forged()),
    "a line without a time": http(200, timeless()),
    "no line feed": http(200, LINE.removesuffix("\n")),
    "a whole note": http(200, LOG.note(5) + LINE),
    "an empty line before": http(200, "\n" + LINE),
    "CRLF": http(200, LINE.replace("\n", "\r\n")),
    "not UTF-8": http(200, LINE.encode() + b"\xff\n"),
    "HTML": http(200, "<html>\n", "Content-Type: text/html"),
    "17 lines": http(200, STRANGER * 16 + LINE),
    "created": http(201, LINE),
    "no content": http(204),
    "a redirect": http(302, "", "Location: http://127.0.0.1:9/add-checkpoint"),
    "a redirect that keeps the method": http(
        307, "", "Location: http://127.0.0.1:9/add-checkpoint"
    ),
    "unauthorised": http(401),
    "too many": http(429),
    "an error": http(500, "Traceback"),
    "out of service": http(503),
    "a size of another type": http(409, "3\n", "Content-Type: text/plain"),
    "a size of no type": http(409, "3\n"),
    "no size": size_is(""),
    "a size without a line feed": size_is("3"),
    "a size with a leading zero": size_is("03\n"),
    "a negative size": size_is("-3\n"),
    "a size of a thousand digits": size_is("9" * 1000 + "\n"),
    "two sizes": size_is("3\n3\n"),
    "too long": http(200, "x" * (MAX_ANSWER_BYTES + 1)),
    "without end": b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 10_000_000,
    "packed": http(200, b"\x1f\x8b" + b"x" * 100, "Content-Encoding: gzip"),
}


@pytest.mark.parametrize("answer", BAD_ANSWERS.values(), ids=BAD_ANSWERS)
def test_bad_witness_answer_is_reported_and_none_of_it_is_kept(answer: bytes) -> None:
    with answering(answer) as fake:
        outcome = ask(fake.witness, 5)
    assert (outcome.result, outcome.line, outcome.at, outcome.size) == (
        Result.BAD_ANSWER,
        None,
        None,
        None,
    )
    assert len(fake.heard) == 1
    assert not {"Traceback", "html", "xxx"} & set(outcome.detail.split())


@pytest.mark.parametrize("name", ["too long", "without end"])
def test_an_answer_that_is_too_long_is_not_read_to_its_end(name: str) -> None:
    with answering(BAD_ANSWERS[name]) as fake:
        assert ask(fake.witness, 5).detail == "The answer is too long."


NO_ANSWERS = {
    "hung up": b"",
    "no HTTP": b"\x16\x03\x01\x00\x00",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-Le",
    "half a body": http(200, LINE)[:-9],
    "a bad length": b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
    "a head without end": b"HTTP/1.1 200 OK\r\n" + b"X: " + b"x" * 1_000_000,
    "a bad chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
}


@pytest.mark.parametrize("answer", NO_ANSWERS.values(), ids=NO_ANSWERS)
def test_malformed_witness_answer_is_reported_as_unreachable(answer: bytes) -> None:
    with answering(answer) as fake:
        assert ask(fake.witness, 5).result is Result.UNREACHABLE


def test_witness_that_does_not_listen_is_unreachable() -> None:
    with answering(b"") as fake:
        witness = fake.witness
    assert ask(witness, 5) == Outcome(Result.UNREACHABLE, detail="ConnectError")


def test_a_witness_with_a_certificate_of_its_own_making_is_not_asked(tmp_path: Path) -> None:
    certificate, key = certificate_for("127.0.0.1")
    (tmp_path / "pem").write_bytes(key + certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "pem")
    heard = []

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            heard.append(context.wrap_socket(connection, server_side=True).recv(1))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        outcome = ask(Witness(f"https://127.0.0.1:{listener.getsockname()[1]}", VERIFIER), 5)
        thread.join()
    assert outcome == Outcome(Result.UNREACHABLE, detail="ConnectError")
    assert not any(heard)


@pytest.mark.parametrize(
    "begun", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n", b"HTTP/1.1 200 OK\r\n"]
)
def test_who_takes_too_long_is_given_up_also_while_bytes_come(
    monkeypatch: pytest.MonkeyPatch, begun: bytes
) -> None:
    monkeypatch.setattr(witness_client, "TIMEOUT_SECONDS", 0.5)
    over = threading.Event()

    def drip(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.sendall(begun)
            while not over.wait(0.05):
                connection.sendall(b"x")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=drip, args=(listener,))
        thread.start()
        begun_at = time.monotonic()
        outcome = ask(Witness(f"http://127.0.0.1:{listener.getsockname()[1]}", VERIFIER), 5)
        assert time.monotonic() - begun_at < within(10)
        over.set()
        thread.join()
    assert outcome.result is Result.UNREACHABLE


def test_a_name_that_is_not_resolved_in_time_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(witness_client, "TIMEOUT_SECONDS", 0.3)
    over = threading.Event()

    def slow(*_arguments: object, **_more: object) -> list[object]:
        over.wait(30)
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    try:
        outcome = ask(Witness("https://witness.example", VERIFIER), 5)
        assert not over.is_set()
    finally:
        over.set()
    assert outcome == Outcome(Result.UNREACHABLE, detail="TimeoutError")


@pytest.mark.parametrize("host", ["a..b", ".", f"{'a' * 64}.example"])
def test_impossible_host_name_is_reported_as_unreachable(host: str) -> None:
    assert ask(Witness(f"https://{host}", VERIFIER), 5).result is Result.UNREACHABLE


def test_a_line_that_is_kept_joins_the_note() -> None:
    with answering(http(200, LINE)) as fake:
        line = ask(fake.witness, 5).line
    assert line is not None
    assert len(parse_note(LOG.note(5) + line).signatures) == 2
