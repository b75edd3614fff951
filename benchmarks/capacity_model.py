"""The tables of docs/capacity.md: `python -m benchmarks.capacity_model`, with your prices.

`--write` rewrites the page's tables at the default prices, which are examples and not anyone's
offer.
"""

import argparse
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Final

from benchmarks.capacity_costs import (
    DAY,
    KEPT_MONTHS,
    MICRO,
    MONTH,
    PLANNED,
    Prices,
    act,
    act_cost,
    archive_bytes,
    compared,
    footprint,
    monthly_cost,
    published,
    resources,
    servers_for,
    spent_us,
    table_bytes,
    waits_p99_ms,
)

PAGE: Final = Path(__file__).parent.parent / "docs/capacity.md"
RATES: Final = (1_000, 10_000, 100_000)
AGENTS: Final = 1_000_000
# A client renews a token of 900 s when 60 s are left (agentauth/sdk/client_cache.py).
RENEWAL_SECONDS: Final = 840
ONE_DECIMAL_BELOW: Final = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    options = {price.name: "--" + price.name.replace("_", "-") for price in fields(Prices)}
    for price in fields(Prices):
        parser.add_argument(options[price.name], type=float, default=price.default)
    parser.add_argument(
        "--write", action="store_true", help="rewrite the tables of docs/capacity.md"
    )
    given = vars(parser.parse_args())
    if given.pop("write"):
        if changed := [options[name] for name in given if given[name] != getattr(Prices(), name)]:
            parser.error(f"--write uses the default prices: leave out {', '.join(changed)}")
        PAGE.write_text(with_new_tables(PAGE.read_text()))
        return
    for name, table in TABLES.items():
        print(f"{name}\n\n{table(Prices(**given))}\n")


def with_new_tables(page: str) -> str:
    """The page with its tables recomputed. Raises KeyError for an unknown table name."""
    pattern = r"(<!-- table: ([a-z ]+) -->\n).*?(<!-- end -->)"

    def render(found: re.Match[str]) -> str:
        return f"{found[1]}\n{TABLES[found[2]](Prices())}\n\n{found[3]}"

    return re.sub(pattern, render, page, flags=re.DOTALL)


def _markdown(head: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def model_table(_prices: Prices) -> str:
    """Measured points beside simulated ones."""
    head = ("part", "processes", "connections", "measured/s", "model/s", "difference")
    return _markdown(
        head,
        (
            (
                str(each["part"]), str(each["workers"]), str(each["connections"]),
                f"{each['rate']:,.0f}", f"{rate:,.0f}", f"{(rate / each['rate'] - 1) * 100:+.0f} %",
            )
            for each, rate in compared()
        ),
    )  # fmt: skip


ACTS: Final = {
    "verification": "a verification",
    "payment": "a payment",
    "token": "a token",
    "approval": "an approval on the pages",
    "agent_by_services": "an agent, registered, with an approved grant",
}


def acts_table(prices: Prices) -> str:
    """What each act takes."""
    head = ("act", "CPU µs: verifier or web", "PostgreSQL", "Redis", "jobs", "events",
            "database bytes", "WAL bytes", "archive bytes", "cost of a million")  # fmt: skip

    def rows() -> Iterator[Sequence[str]]:
        for name, title in ACTS.items():
            cpu = spent_us(name)
            server = cpu.get("server", cpu.get("web"))
            used = (server, cpu.get("postgres"), cpu.get("redis"), cpu.get("jobs"))
            cells = ["-" if each is None else f"{each:,.0f}" for each in used]
            measured = act(name)
            cost = f"{act_cost(name, prices):,.2f}" if cpu else "-"
            yield (
                title, *cells, f"{measured['events']:.2f}", f"{table_bytes(name):,.0f}",
                f"{measured['wal_bytes']:,.0f}", f"{archive_bytes(name):,.0f}", cost,
            )  # fmt: skip
        measured = act("verification")
        spent = spent_us("verification")
        yield (
            "the audit event of a verification alone", "-", f"{spent['postgres']:,.0f}", "-",
            f"{spent['jobs']:,.0f}", "1.00", f"{table_bytes('verification'):,.0f}",
            f"{measured['wal_bytes']:,.0f}", f"{archive_bytes('verification'):,.0f}", "-",
        )  # fmt: skip

    return _markdown(head, rows())


def bytes_table(_prices: Prices) -> str:
    """Database bytes by table."""
    tables = sorted(
        {table for name in ACTS for table in act(name)["table_bytes"]},
        key=lambda table: (-act("agent_by_services")["table_bytes"].get(table, 0), table),
    )
    return _markdown(
        ("table", *ACTS.values()),
        (
            (f"`{table}`", *(f"{act(name)['table_bytes'].get(table, 0):,.0f}" for name in ACTS))
            for table in tables
        ),
    )


def cell(number: float) -> str:
    """A figure, with one digit after the point if it is small."""
    return f"{number:,.1f}" if number < ONE_DECIMAL_BELOW else f"{number:,.0f}"


def memory_table(_prices: Prices) -> str:
    """Memory of each group of processes, shared pages counted once."""
    idle, after = footprint()["memory_bytes_idle"], footprint()["memory_bytes_after"]
    return _markdown(
        ("processes", "MB at the start", "MB after all acts", "number", "largest, MB"),
        (
            (
                name, f"{sum(idle[name]) / 1e6:,.0f}", f"{sum(after[name]) / 1e6:,.0f}",
                f"{len(after[name])}", f"{after[name][0] / 1e6:,.0f}",
            )
            for name in ("verifier", "web", "jobs", "postgres", "redis")
        ),
    )  # fmt: skip


def growth_table(_prices: Prices) -> str:
    """Bytes per agent with its grant and receipt, by how many agents exist."""
    first, copies = act("agent_by_services"), footprint()["copies"]
    steps = [(first["number"], first["table_bytes"])]
    steps += [(each["count"], each["table_bytes"]) for each in copies]
    return _markdown(
        ("table", *(f"of the {'first' if not at else 'next'} {count:,}"
                    for at, (count, _) in enumerate(steps))),
        ((f"`{table}`", *(f"{found.get(table, 0):,.0f}" for _, found in steps))
         for table in copies[-1]["table_bytes"]),
    )  # fmt: skip


def rates_table(_prices: Prices) -> str:
    """What each rate of verifications needs."""
    spent, proofs = spent_us("verification"), footprint()["redis"]

    lines: list[tuple[str, Callable[[float], str]]] = [
        ("verifier processes, one core each",
         lambda rate: f"{servers_for(rate, spent['server']):,}"),
        ("their queue's p99, ms (M/M/c)",
         lambda rate: f"{waits_p99_ms(rate, spent['server'], servers_for(rate, spent['server'])):.2f}"),  # noqa: E501
        ("Redis: shards", lambda rate: f"{servers_for(rate, spent['redis']):,}"),
        ("PostgreSQL: cores", lambda rate: cell(rate * spent["postgres"] * MICRO / PLANNED)),
        ("jobs: cores", lambda rate: cell(rate * spent["jobs"] * MICRO / PLANNED)),
        ("WAL, MB/s", lambda rate: cell(rate * act("verification")["wal_bytes"] / 1e6)),
        ("database, GB a day", lambda rate: cell(rate * DAY * table_bytes("verification") / 1e9)),
        (f"database after {KEPT_MONTHS} months, TB",
         lambda rate: cell(rate * MONTH * KEPT_MONTHS * table_bytes("verification") / 1e12)),
        ("archive, GB a day",
         lambda rate: cell(rate * DAY * archive_bytes("verification") / 1e9)),
        ("Redis: MB of spent proofs",
         lambda rate: cell(rate * proofs["proof_seconds"] * proofs["bytes_per_proof"] / 1e6)),
        ("Redis: MB of events for each minute that `jobs` is down",
         lambda rate: cell(rate * 60 * proofs["bytes_per_waiting_event"] / 1e6)),
    ]  # fmt: skip
    head = ("verifications a second, all day", *(f"{rate:,}" for rate in RATES))
    return _markdown(head, ((name, *map(line, RATES)) for name, line in lines))


def bottleneck_table(_prices: Prices) -> str:
    """The share of each single unit that each rate takes, the smallest ceiling first."""
    found = sorted(resources(), key=lambda each: each.verifications)
    return _markdown(
        ("one unit", "limit/s", "measured by", *(f"at {rate:,}/s" for rate in RATES),
         "what removes it"),
        (
            (
                each.name, f"{each.verifications:,.0f}", each.source,
                *(f"{rate / each.verifications * 100:,.0f} %" for rate in RATES), each.remedy,
            )
            for each in found
        ),
    )  # fmt: skip


def agents_table(_prices: Prices) -> str:
    """A million agents."""
    renewing = AGENTS / RENEWAL_SECONDS
    token, approval = spent_us("token"), spent_us("approval")
    # In kB.
    token_bytes = published("token_bytes") * 1_000
    lines = [
        ("rows at rest, GB", f"{AGENTS * table_bytes('agent_by_services') / 1e9:,.1f}"),
        ("archive of their registration and approval, GB",
         f"{AGENTS * archive_bytes('agent_by_services') / 1e9:,.1f}"),
        ("approvals on the pages: CPU hours, once",
         f"{AGENTS * sum(approval.values()) * MICRO / 3_600:,.0f}"),
        ("if 1 % are active: tokens a second", f"{renewing / 100:,.0f}"),
        ("if all are active: tokens a second", f"{renewing:,.0f}"),
        ("web cores for these", f"{servers_for(renewing, token['web']):,}"),
        ("PostgreSQL cores for these", f"{renewing * token['postgres'] * MICRO / PLANNED:,.1f}"),
        ("database bytes of these tokens, GB a day",
         f"{renewing * DAY * table_bytes('token') / 1e9:,.0f}"),
        ("memory of each verifier process for all their tokens, GB",
         f"{AGENTS * token_bytes / 1e9:,.1f}"),
    ]  # fmt: skip
    return _markdown(("a million agents", "needs"), iter(lines))


def cost_table(prices: Prices) -> str:
    """An example of what a month costs."""
    costs = {rate: monthly_cost(rate, prices) for rate in RATES}
    parts = [*costs[RATES[0]]]
    head = ("verifications a second, all day", *parts, "a month", "a million verifications")
    return _markdown(
        head,
        (
            (
                f"{rate:,}", *(f"{costs[rate][part]:,.0f}" for part in parts),
                f"{sum(costs[rate].values()):,.0f}",
                f"{sum(costs[rate].values()) / (rate * MONTH / 1e6):,.2f}",
            )
            for rate in RATES
        ),
    )  # fmt: skip


TABLES: Final[dict[str, Callable[[Prices], str]]] = {
    "model": model_table,
    "acts": acts_table,
    "bytes by table": bytes_table,
    "growth": growth_table,
    "memory": memory_table,
    "rates": rates_table,
    "bottlenecks": bottleneck_table,
    "agents": agents_table,
    "cost": cost_table,
}


if __name__ == "__main__":
    main()
