"""The benchmark driver counts correctly. No test measures time; only benchmarks/ does."""

import base64
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from agentauth.protocol.keys import Algorithm, LocalSigner, PrivateKey
from agentauth.protocol.token import sign_token
from agentauth.sdk.verifier import VerifierClient
from benchmarks import postgresql_ceiling, sdk_verifier, verify
from benchmarks.flood_requests import FLOODS, Target
from benchmarks.issuance import Answers, signed
from benchmarks.load_generation import (
    Crowd,
    Question,
    Tally,
    parse_tally,
    requests_in,
    write_requests,
)
from benchmarks.load_generator_check import by_open_loop, difference
from benchmarks.open_loop import open_loop, percentile
from benchmarks.system_under_test import place

pytestmark = pytest.mark.flow
ROOT = Path(__file__).resolve().parent.parent
PAY = {"type": "transact", "resource": "payments", "amount": {"value": "0.01", "currency": "EUR"}}


def crowd(alg: Algorithm, agents: int) -> Crowd:
    pems = [PrivateKey.generate(alg).to_pem().decode() for _ in range(agents)]
    return Crowd(
        "sp", "secret", "https://sp.example", [(pem, f"token-{at}") for at, pem in enumerate(pems)]
    )


def bodies(files: list[Path]) -> list[dict[str, object]]:
    """The JSON of each request, after checking its Content-Length."""
    found = []
    for request in requests_in(files):
        head, _, body = request.decode().partition("\r\n\r\n")
        assert head.endswith(f"Content-Length: {len(body)}")
        found.append(json.loads(body))
    return found


def test_refusals_replays_and_broken_connections_are_counted_as_such() -> None:
    # The server checks every proof but the repeated ones, so this tests the generator too.
    assert difference(by_open_loop, "EdDSA") == ""
    assert difference(by_open_loop, "ES256") == ""


def test_agents_take_turns_and_no_operation_comes_twice(tmp_path: Path) -> None:
    asked = bodies(
        write_requests(
            tmp_path, crowd("EdDSA", 3), Question(PAY, operation=True), url="http://a:1", calls=30
        )
    )
    assert [body["token"] for body in asked] == [f"token-{call % 3}" for call in range(30)]
    assert len({str(body["idempotency_key"]) for body in asked}) == 30
    assert len({str(body["proof"]) for body in asked}) == 30


def test_a_batch_holds_as_many_questions_as_it_should(tmp_path: Path) -> None:
    question = Question({"type": "read", "resource": "calendar"}, batch=4)
    files = write_requests(tmp_path, crowd("ES256", 2), question, url="http://a:1", calls=5)
    assert [len(body["requests"]) for body in bodies(files)] == [4] * 5  # type: ignore[arg-type]
    assert all(request.startswith(b"POST /v1/verify/batch ") for request in requests_in(files))


def test_agents_and_actions_take_turns_from_run_to_run(tmp_path: Path) -> None:
    acts = [{"type": "read", "resource": f"calendar/{number}"} for number in range(4)]
    people, question = crowd("EdDSA", 2), Question(acts[0], acts[1:])
    asked = [
        (body["token"], body["action"])
        for first in (0, 4)
        for body in bodies(
            write_requests(tmp_path, people, question, url="http://a:1", calls=4, first=first)
        )
    ]
    assert [token for token, _ in asked] == ["token-0", "token-1"] * 4
    for agent in range(2):
        assert sorted(action["resource"] for _, action in asked[agent::2]) == [  # type: ignore[index]
            act["resource"] for act in acts
        ]


def test_a_named_call_has_an_idempotency_key_of_its_own(tmp_path: Path) -> None:
    question = Question({"type": "read", "resource": "calendar"}, named=True)
    files = write_requests(tmp_path, crowd("EdDSA", 2), question, url="http://a:1", calls=20)
    names = [
        re.findall(rb"\r\nIdempotency-Key: (.+)\r\n", request) for request in requests_in(files)
    ]
    assert len(bodies(files)) == 20
    assert len({name for [name] in names}) == 20
    # At least 128 random bits (docs/protocol.md section 8).
    assert all(len(base64.urlsafe_b64decode(name + b"==")) >= 16 for [name] in names)


@pytest.mark.parametrize("name", FLOODS)
def test_each_request_of_a_flood_is_whole_and_another_one(name: str) -> None:
    target = Target("http://localhost:1", crowd("EdDSA", 1), "grant")
    made = [FLOODS[name].make(target).decode().partition("\r\n\r\n") for _ in range(2)]
    assert made[0] != made[1]
    for head, _, body in made:
        assert ("Content-Length: " in head) is bool(body)
        assert not body or head.endswith(f"Content-Length: {len(body)}")


def test_wrk_s_counts_are_read_and_its_silence_is_an_error() -> None:
    printed = (
        'Running 5s test\n{"sent": 12, "answered": 10, "not_2xx": 2, "wrong": 3, "errors": 1, '
        '"seconds": 0.5,'
        ' "p50_ms": 1.5, "p99_ms": 4.0, "p999_ms": 9.25}\n'
    )
    tally = parse_tally(printed)
    assert (tally.sent, tally.answered, tally.errors, tally.p999_ms) == (12, 10, 1, 9.25)
    # Of ten calls with four questions each, two were refused whole, and three verdicts of the
    # others were wrong.
    assert tally.right(4) == 29
    with pytest.raises(ValueError, match="no usable result"):
        parse_tally("unable to connect")


def test_percentiles_are_those_of_the_ordered_figures() -> None:
    figures = [number / 1000 for number in range(1, 1001)]
    assert percentile(figures, 50) == pytest.approx(501)
    assert percentile(figures, 99) == pytest.approx(991)
    assert percentile([], 99) == 0


def test_answers_are_counted_by_status_key_and_time() -> None:
    answers, signer = Answers(), LocalSigner(PrivateKey.generate())
    body = json.dumps({"access_token": sign_token({"iss": "a"}, signer), "grant_id": "g"}).encode()
    for second in range(8):
        good = second % 4 < 3
        answers.tell(
            second,
            second + 0.5 + second / 10,
            b"HTTP/1.1 201 C" if good else b"HTTP/1.1 503 S",
            body,
        )
    assert answers.kids == {signer.kid: 6}
    assert answers.times("503") == pytest.approx([0.8, 1.2])
    assert [len(part) for part in answers.quarters("201")] == [2, 1, 2, 1]


def test_each_call_for_a_token_has_a_proof_of_its_own_of_when_it_is_due() -> None:
    agents = [
        {"agent_pem": PrivateKey.generate().to_pem().decode(), "grant_id": f"grant-{at}"}
        for at in range(2)
    ]
    found = []
    for request in signed("http://localhost:1", agents, calls=40, rate=10):
        head, _, body = request.decode().partition("\r\n\r\n")
        proof = head.partition("DPoP: ")[2].split(".")[1]
        found.append(
            (json.loads(body)["grant_id"], json.loads(base64.urlsafe_b64decode(proof + "==")))
        )
    assert [grant for grant, _ in found] == ["grant-0", "grant-1"] * 20
    assert len({claims["jti"] for _, claims in found}) == 40
    assert found[-1][1]["iat"] - found[0][1]["iat"] in {3, 4}


@pytest.mark.long
def test_benchmark_endpoint_in_one_process_allows_every_request() -> None:
    command = [sys.executable, "-m", "benchmarks.verification_cpu", "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    names = [row.split(" | ")[0] for row in done.stdout.splitlines()[-6:]]
    assert names == [
        "| EdDSA",
        "| EdDSA, each call named",
        "| EdDSA, four arguments",
        "| ES256",
        "| EdDSA, an open window",
        "| EdDSA, 16 closed windows",
    ]


LOG = """@7@ LOG:  statement: BEGIN
@8@ LOG:  statement: SELECT 1
@7@ LOG:  execute _pg3_0: INSERT INTO t
\tVALUES ($1::uuid[], $2, $3, $11)
@7@ DETAIL:  Parameters: $1 = '{019f0000-0000-7000-8000-000000000001}', $2 = 'it''s', $3 = NULL, $11 = 'k-01'
@7@ LOG:  statement: COMMIT
@8@ LOG:  statement: BEGIN
@8@ LOG:  statement: ROLLBACK
"""  # noqa: E501


def test_statements_of_a_payment_are_read_from_the_log_of_postgresql() -> None:
    assert list(postgresql_ceiling.transactions(LOG)) == [
        [
            "BEGIN",
            (
                "INSERT INTO t\n\tVALUES ('{019f0000-0000-7000-8000-000000000001}'::uuid[], "
                "'it''s', NULL, 'k-01')"
            ),
            "COMMIT",
        ]
    ]


def test_what_differs_between_payments_comes_from_a_table() -> None:
    payments = {
        f"k-{number:012}": (
            f"SELECT '019f0000-0000-7000-8000-00000000000{number}',"
            f" 'k-{number:012}', 'it''s {number}', '12:30';"
        )
        for number in (1, 2, 3)
    }
    odd = {"k-000000000004": "SELECT 1;"}
    text, rows = postgresql_ceiling.script(payments | odd, since=0x019F00000000)
    assert rows == [
        ["019f0000-0000-7000-8000-<tail>", "k-<tail>", f"it's {number}"] for number in (1, 2, 3)
    ]
    assert text.splitlines()[2:] == [
        "SELECT c0, c1, c2 FROM benchmark_payment WHERE n = :n \\gset",
        (
            "SELECT replace(:c0::text, E'<tail>', :tail::text), replace(:c1::text, E'<tail>', "
            ":tail::text), :c2, E'12\\x3a30';"
        ),
    ]
    # An older id belongs to an existing row.
    _, [row, *_] = postgresql_ceiling.script(payments, since=0x019F00000001)
    assert row[0] == "019f0000-0000-7000-8000-000000000001"


def test_pgbench_run_with_failed_transactions_gives_no_figure() -> None:
    printed = (
        "number of transactions actually processed: 30\nnumber of failed transactions: {} "
        "(0.000%)\ntps = 15.5 (x)\n"
    )
    assert postgresql_ceiling.counted(printed.format(0)) == (30, 15.5)
    with pytest.raises(ValueError, match="some failed"):
        postgresql_ceiling.counted(printed.format(1))


def test_cpu_is_reported_in_signature_checks_of_the_same_minute() -> None:
    tally = Tally(
        sent=9, answered=9, not_2xx=0, wrong=0, errors=0, seconds=1, p50_ms=1, p99_ms=2, p999_ms=3
    )
    run = verify.Run(tally, 9, 9.0, {"server": 150.0, "postgres": 20.0}, check_us=50.0)
    names = [cell.strip() for cell in verify.HEAD.splitlines()[0].split("|")[1:-1]]
    for cells in (verify.row(run), verify.medians([run, run])):
        found = [cell.strip() for cell in cells.split("|")[1:-1]]
        assert dict(zip(names[3:], found, strict=True))["÷ check"] == "3.0"


@pytest.mark.long
@pytest.mark.parametrize("name", ["named", "arguments", "many", "hot"])
def test_a_part_gets_a_yes_to_every_call(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    part = verify.PARTS[name]
    agents, calls = min(part.agents, 8), 24
    wish = {
        "agents": agents, "capabilities": part.capabilities, "envelope": part.envelope,
        "alg": "EdDSA",
    }  # fmt: skip
    with place(database="postgres", lean=True, wish=wish, bulk=part.bulk) as there:
        assert len({token for _, token in there.people().agents}) == agents
        requests = requests_in(verify.signed(there, part, calls))
        tally, _ = open_loop(there.server.url, requests, rate=None, batch=1, connections=2)
        assert (tally.answered, tally.wrong, tally.not_2xx, tally.errors) == (calls, 0, 0, 0)
        if name == "named":
            # The same calls: their proofs are spent, and their answers are stored.
            again, _ = open_loop(there.server.url, requests, rate=None, batch=1, connections=2)
            assert (again.answered, again.wrong, again.not_2xx, again.errors) == (calls, 0, 0, 0)
            with VerifierClient(
                there.server.url, there.people().client_id, there.people().client_secret
            ) as client:
                answers = sdk_verifier.ask(
                    client, there.people(), sdk_verifier.signed(there.people(), 3), threads=2
                )
            assert (len(answers.times), answers.failed) == (3 * agents, 0)
        if name == "hot":
            file = there.directory / "payment.sql"
            file.write_text(postgresql_ceiling.written(there))
            # Its CPU is counted in ticks of 10 ms; a run of one second may have none.
            rate, _ = postgresql_ceiling.pgbench(there, file, 2, 1)
            assert rate > 0


@pytest.mark.long
def test_footprint_counts_what_each_act_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    file = tmp_path / "footprint.json"
    options = ["--calls=40", "--agents=3", "--copies", "4", "--approvals=2", f"--json={file}"]
    command = [sys.executable, "-m", "benchmarks.footprint", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    acts = json.loads(file.read_text())["figures"]["acts"]
    assert [acts[name]["events"] for name in ("token", "verification", "payment")] == [1, 1, 1]
    # A table grows by whole pages, so a few rows may fit into the last one.
    grown = sum(acts[name]["table_bytes"].get("audit_leaf", 0) for name in acts)
    assert grown > 0, acts


# Prints each command whose module rejects it; a module without options is recognised by that.
PARSE = """
import argparse, importlib, shlex, sys

class Parsed(Exception):
    pass

def parse(parser, args=None, namespace=None):
    real(parser, args, namespace)
    raise Parsed

real, argparse.ArgumentParser.parse_args = argparse.ArgumentParser.parse_args, parse
for line in sys.stdin:
    name, *sys.argv[1:] = shlex.split(line)
    module = importlib.import_module(f"benchmarks.{name}")
    if not hasattr(module, "argparse"):
        assert not sys.argv[1:], line
        continue
    try:
        module.main()
    except Parsed:
        continue
    except SystemExit:
        print(line)
"""


def test_every_command_that_is_printed_parses() -> None:
    pages = [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        ROOT / "Makefile",
        ROOT / "tests/CASES.md",
    ]
    pages.append(ROOT / "benchmarks/README.md")
    found = {
        command.strip()
        for page in pages
        for command in re.findall(r"python -m benchmarks\.([^`#\n]+)", page.read_text())
    }
    _, latest, history = re.split(
        r"^## (?:Latest figures|History)$", pages[-1].read_text(), flags=re.MULTILINE
    )
    measured = re.findall(r"^\| `([^`]+)`", latest, re.MULTILINE)
    measured += re.findall(r"^\| [^|]* \| [^|]* \| `([^`]+)`", history, re.MULTILINE)
    assert {command.split()[0] for command in found} >= {
        "verify",
        "sdk_verifier",
        "postgresql_ceiling",
        "comparable_servers",
    }
    assert len(measured) > 40
    results = (
        json.loads(path.read_text()) for path in (ROOT / "benchmarks/results").glob("*.json")
    )
    found |= {
        told["command"].removeprefix("python -m benchmarks.")
        for told in results
        if told["command"].startswith("python")
    }
    done = subprocess.run(
        [sys.executable, "-c", PARSE],
        input="\n".join(sorted(found | set(measured))),
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "", done.stderr


def test_the_page_of_results_is_short() -> None:
    assert (ROOT / "benchmarks/README.md").stat().st_size <= 15_000
