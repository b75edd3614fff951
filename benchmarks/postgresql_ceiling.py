"""Measures payments a second against what PostgreSQL alone can do: `python -m
benchmarks.postgresql_ceiling`.

1. Make one payment for each of 100 agents, while PostgreSQL logs each statement. Their transactions
   become one pgbench script: the same statements with the values of a random agent, prepared as
   ours are, but with new ids and a new idempotency key each time. It reads the values from a table
   first, which is one statement more.
2. Make payments as fast as they are answered, like `benchmarks.verify --part durable`.
3. Run the script as fast as PostgreSQL accepts it, over as many connections, with no jobs running.

A transaction of the script holds one payment, while in step 2 several may share one, so the share
may exceed 100 %. Prints Markdown (benchmarks/README.md explains the figures).
"""

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import psycopg

from benchmarks import verify
from benchmarks.cpu_time import cpu_seconds
from benchmarks.issued_token_check import PAUSE_SECONDS, TRIES
from benchmarks.load_generation import TIMEOUT_SECONDS, BodyWriter
from benchmarks.system_under_test import MeasuredSystem, machine, place
from tests.postgres import binaries

# Begins every log entry, to tell apart the statements of each connection.
PREFIX = "@%p@ "
TABLE = "benchmark_payment"
DIGITS, TAIL = 12, "<tail>"
KEY = f"payment-{{:0{DIGITS}}}"
# A version 7 id begins with its time; the rest tells ids apart.
ID = re.compile(r"([0-9a-f]{8})-([0-9a-f]{4})-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")
LINE = re.compile(
    r"^@(\d+)@ (?:LOG:  (?:execute [^:]*|statement): |DETAIL:  [Pp]arameters: )(.*)", re.DOTALL
)
LITERAL = re.compile(r"'((?:[^']|'')*)'(::)?")
VALUE = re.compile(r"\$(\d+) = (NULL|'(?:[^']|'')*')")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=10, help="seconds of each run")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--connections", type=int, default=16)
    given = parser.parse_args(namespace=argparse.Namespace(pin=False))
    os.environ.pop("DATABASE_URL", None)
    part = verify.PAYING
    wish = {"agents": part.agents, "capabilities": part.capabilities, "envelope": part.envelope}
    print(f"{machine()}. {' '.join(sys.argv[1:])}\n", flush=True)
    print(
        "| run | payments/s | PostgreSQL CPU µs | pgbench alone, transactions/s | CPU µs | share |"
        f"\n{'|---' * 6}|",
        flush=True,
    )
    with (
        place(database="postgres", lean=True, wish=wish) as there,
        tempfile.TemporaryDirectory(prefix="agentauth-share-") as folder,
    ):
        file = Path(folder) / "payment.sql"
        file.write_text(written(there))
        shares = []
        for number in range(given.runs):
            paid = verify.run(there, part, given, rate=None)
            alone, cpu = pgbench(there, file, given.connections, given.seconds)
            shares.append(paid.rate / alone)
            print(
                f"| {number + 1} | {paid.rate:,.0f} | {paid.cpu['postgres']:,.0f}"
                f" | {alone:,.0f} | {cpu:,.0f} | {shares[-1]:.0%} |",
                flush=True,
            )
    print(
        f"| median | | | | | {statistics.median(shares):.0%} "
        f"({min(shares):.0%}–{max(shares):.0%}) |",
        flush=True,
    )


def written(there: MeasuredSystem) -> str:
    """The script; its values are in the table it reads.

    Raises RuntimeError if a payment is refused, or is not exactly one transaction.
    """
    url = there.registry.env["DATABASE_URL"]
    with psycopg.connect(url, autocommit=True) as asking:
        [data] = asking.execute("SHOW data_directory").fetchone() or ("",)
        log = Path(str(data)).parent / "log"
        for statement in (
            f"ALTER SYSTEM SET log_line_prefix = '{PREFIX}'",
            "ALTER SYSTEM SET log_statement = 'all'",
            "SELECT pg_reload_conf()",
        ):
            asking.execute(statement.encode())
        wait_for_logging(url)
        seen, since = log.stat().st_size, int(time.time() * 1000)
        keys = pay_once(there)
        for name in ("log_statement", "log_line_prefix"):
            asking.execute(f"ALTER SYSTEM RESET {name}".encode())
        asking.execute("SELECT pg_reload_conf()")
    with log.open() as told:
        told.seek(seen)
        every = list(transactions(told.read()))
    payments = {}
    for key in keys:
        found = [each for each in every if any(key in statement for statement in each)]
        if len(found) != 1:
            raise RuntimeError(f"a payment was {len(found)} transactions")
        payments[key] = ";\n".join(statement.replace("\n", " ") for statement in found[0]) + ";\n"
    text, rows = script(payments, since)
    with psycopg.connect(url) as writing:
        columns = ", ".join(f"c{place} text" for place in range(len(rows[0])))
        writing.execute(
            f"CREATE UNLOGGED TABLE {TABLE} (n integer PRIMARY KEY, {columns})".encode()
        )
        slots = ", ".join(["%s"] * (1 + len(rows[0])))
        insert = f"INSERT INTO {TABLE} VALUES ({slots})".encode()  # noqa: S608 — our own text
        writing.cursor().executemany(insert, [(number, *row) for number, row in enumerate(rows, 1)])
    return text


def wait_for_logging(url: str) -> None:
    """Wait until PostgreSQL's main process has reloaded its settings and signalled the others."""
    while True:
        with psycopg.connect(url) as asking:
            if asking.execute("SHOW log_statement").fetchone() == ("all",):
                return


def pay_once(there: MeasuredSystem) -> list[str]:
    """One payment per agent, one after the other; returns the idempotency keys, all of one length.

    Raises RuntimeError for a refusal, or after five failed tries in a row (503 or the like).
    """
    crowd, keys = there.people(), []
    for number, (pem, token) in enumerate(crowd.agents):
        writer = BodyWriter(pem, token, crowd.audience, verify.PAYING.question)
        for tried in range(TRIES):
            key = KEY.format(number * TRIES + tried)
            body = json.loads(writer.body(int(time.time()))) | {"idempotency_key": key}
            answer = httpx.post(
                f"{there.server.url}/v1/verify",
                json=body,
                headers={"Authorization": crowd.basic},
                timeout=TIMEOUT_SECONDS,
            )
            if answer.status_code == httpx.codes.OK:
                break
            time.sleep(PAUSE_SECONDS)
        if not answer.is_success or answer.json()["valid"] is not True:
            raise RuntimeError(f"a payment was refused: {answer.text}")
        keys.append(key)
    return keys


def transactions(log: str) -> Iterator[list[str]]:
    """Each transaction's statements in PostgreSQL's log, BEGIN to COMMIT, with literal values."""
    open_ones: dict[str, list[str]] = {}
    # A line without the prefix continues the previous entry.
    for entry in re.split(r"\n(?=@\d+@ )", log):
        told = LINE.match(entry.rstrip())
        if told is None:
            continue
        pid, text = told.groups()
        if "DETAIL:" in entry[: told.start(2)]:
            if pid in open_ones:
                open_ones[pid][-1] = with_values(open_ones[pid][-1], text)
        elif text.upper().startswith("BEGIN"):
            open_ones[pid] = [text]
        elif pid in open_ones:
            open_ones[pid].append(text)
            if text.upper() in {"COMMIT", "ROLLBACK"}:
                done = open_ones.pop(pid)
                if text.upper() == "COMMIT":
                    yield done


def with_values(statement: str, parameters: str) -> str:
    """The statement with the logged values, as quoted text, in place of `$1` and so on."""
    values = dict(VALUE.findall(parameters))
    return re.sub(r"\$(\d+)\b", lambda found: values[found[1]], statement)


def script(payments: Mapping[str, str], since: int) -> tuple[str, list[list[str]]]:
    """A pgbench script for any of these payments' statements (by key), and each payment's table
    values.

    Version 7 ids made since `since` (ms since 1970), and the keys, end differently each time. A
    payment with a statement that a process runs only now and then, such as the queue's length, is
    left out.
    """
    forms = {key: LITERAL.sub(r"?\2", payment) for key, payment in payments.items()}
    usual = Counter(forms.values()).most_common(1)[0][0]
    alike = {key: payment for key, payment in payments.items() if forms[key] == usual}
    values = [
        [marked(found[1], key, since) for found in LITERAL.finditer(payment)]
        for key, payment in alike.items()
    ]
    columns: list[tuple[str, ...]] = []
    each = iter(zip(*values, strict=True))

    def slot(found: re.Match[str]) -> str:
        own, cast = next(each), found[2] or ""
        is_new = TAIL in own[0]
        if len(set(own)) == 1 and not is_new:
            return quoted(found[1]) + cast
        columns.append(own)
        name = f":c{len(columns) - 1}"
        if not is_new:
            return name + cast
        # A combined value is text; a single one has the type that is asked for.
        cast = cast or ("::text[]" if own[0].startswith("{") else "")
        return f"replace({name}::text, {quoted(TAIL)}, :tail::text){cast}"

    text = LITERAL.sub(slot, next(iter(alike.values())))
    names = ", ".join(f"c{place}" for place in range(len(columns)))
    head = (
        f"\\set tail random({10 ** (DIGITS - 1)}, {10**DIGITS - 1})\n\\set n random(1, "
        f"{len(alike)})\n"
        f"SELECT {names} FROM {TABLE} WHERE n = :n \\gset\n"
    )
    return head + text, [list(row) for row in zip(*columns, strict=True)]


def marked(text: str, key: str, since: int) -> str:
    """The value of a literal, with TAIL where a new id or the key ends."""

    def new(found: re.Match[str]) -> str:
        is_new = int(found[1] + found[2], 16) >= since
        return found[0][:-DIGITS] + TAIL if is_new else found[0]

    return ID.sub(new, text).replace(key, key[:-DIGITS] + TAIL).replace("''", "'")


def quoted(text: str) -> str:
    """A literal from a quoted text. In pgbench a colon begins a variable even between quotes."""
    return "E'" + text.replace("\\", "\\\\").replace(":", "\\x3a") + "'"


def pgbench(there: MeasuredSystem, file: Path, clients: int, seconds: int) -> tuple[float, float]:
    """Transactions a second, and PostgreSQL's CPU µs per transaction.

    Raises CalledProcessError if one failed.
    """
    where = psycopg.conninfo.conninfo_to_dict(there.registry.env["DATABASE_URL"])
    program = str((binaries() or Path()) / "pgbench")
    command = [
        *(program, "-n", "-M", "prepared"),
        *("-c", str(clients), "-j", "2", "-T", str(seconds)),
        *("-h", str(where["host"]), "-p", str(where["port"]), "-U", str(where["user"])),
        *("-f", str(file), str(where["dbname"])),
    ]
    root = {"postgres": there.others["postgres"]}
    os.kill(there.others["jobs"], signal.SIGSTOP)
    try:
        before = cpu_seconds(root)["postgres"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        spent = cpu_seconds(root)["postgres"] - before
    finally:
        os.kill(there.others["jobs"], signal.SIGCONT)
    count, rate = counted(done.stdout)
    return rate, spent / count * 1e6


def counted(printed: str) -> tuple[int, float]:
    """Count and rate (1/s) of transactions. Raises ValueError if any failed or none ran."""
    count = re.search(r"^number of transactions actually processed: (\d+)", printed, re.MULTILINE)
    failed = re.search(r"^number of failed transactions: (\d+)", printed, re.MULTILINE)
    rate = re.search(r"^tps = ([\d.]+)", printed, re.MULTILINE)
    if count is None or rate is None or not int(count[1]) or (failed and int(failed[1])):
        raise ValueError(f"pgbench made no transaction, or some failed: {printed}")
    return int(count[1]), float(rate[1])


if __name__ == "__main__":
    main()
