"""docs/capacity.md holds what the model computes, and the model reproduces what was measured."""

import json
import math
import sys
from pathlib import Path

import pytest

from agentauth.protocol.token import MAX_TOKEN_SECONDS
from agentauth.sdk.client_cache import read_token
from benchmarks import capacity_costs, capacity_model
from benchmarks.capacity_simulation import TOGETHER, Costs, simulate
from benchmarks.result_file import RESULTS
from verifier.stores import group_commit

ROOT = Path(__file__).resolve().parent.parent
# docs/capacity.md names it.
RATE_TOLERANCE = 0.15


def test_model_reproduces_each_measured_point() -> None:
    wrong = [
        (each["part"], each["workers"], each["connections"], each["rate"], rate)
        for each, rate in capacity_costs.compared()
        if abs(rate / each["rate"] - 1) > RATE_TOLERANCE
    ]
    assert not wrong
    assert f"within {RATE_TOLERANCE * 100:.0f} %" in capacity_model.PAGE.read_text()


def test_tables_of_the_page_are_what_the_model_computes() -> None:
    page = capacity_model.PAGE.read_text()
    assert capacity_model.with_new_tables(page) == page
    assert [page.count(f"<!-- table: {name} -->") for name in capacity_model.TABLES] == [1] * len(
        capacity_model.TABLES
    )


def test_page_is_not_written_at_other_prices(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    page = tmp_path / "capacity.md"
    page.write_text("<!-- table: cost -->\n<!-- end -->")
    monkeypatch.setattr(capacity_model, "PAGE", page)
    monkeypatch.setattr(sys, "argv", ["capacity_model", "--write", "--vcpu-hour", "0.03"])
    with pytest.raises(SystemExit):
        capacity_model.main()
    assert "--write uses the default prices: leave out --vcpu-hour" in capsys.readouterr().err
    assert page.read_text() == "<!-- table: cost -->\n<!-- end -->"
    monkeypatch.setattr(sys, "argv", ["capacity_model", "--write"])
    capacity_model.main()
    assert "| 1,000 |" in page.read_text()


def test_agents_table_renews_tokens_as_often_as_the_sdk_does() -> None:
    answer = {"access_token": "a", "expires_in": MAX_TOKEN_SECONDS}
    assert read_token(answer, asked_at=0).renew_at == capacity_model.RENEWAL_SECONDS


def test_each_published_figure_is_in_a_row_of_the_benchmarks() -> None:
    rows = (ROOT / "benchmarks/README.md").read_text()
    told = json.loads((RESULTS / "published.json").read_text())
    for figure in told["figures"].values():
        assert figure["row"] in rows
        assert f"{figure['value']:,}" in figure["row"]
    for point in told["points"]:
        assert point["row"] in rows
        for name in ("rate", "server_us", "postgres_us"):
            assert f"{point.get(name, point['rate']):,}" in point["row"], point["part"]


def test_simulation_groups_commits_as_the_verifier_does() -> None:
    assert TOGETHER == group_commit._TOGETHER


def test_simulated_rates_obey_the_laws_of_queues() -> None:
    costs = Costs(client=10, verifier=100, redis=10, background=0)
    # One process is the bottleneck: one call each 100 µs, and Little's law gives the latency.
    found = simulate(costs, workers=1, connections=8, cores=4)
    assert found.rate == pytest.approx(10_000, rel=0.03)
    assert found.p50_ms == pytest.approx(8 / found.rate * 1000, rel=0.1)
    # A single caller never waits; all share two cores.
    assert simulate(costs, workers=1, connections=1, cores=4).rate == pytest.approx(8_333, rel=0.03)
    busy = simulate(costs, workers=8, connections=64, cores=2)
    assert busy.rate == pytest.approx(2e6 / 120, rel=0.03)


def test_waits_are_those_of_erlang_s_formula() -> None:
    # One server: P(wait > t) = ρ·exp(−(μ − λ)t).
    expected = math.log(0.5 / 0.01) / (1_000 - 500) * 1_000
    assert capacity_costs.waits_p99_ms(500, 1_000, 1) == pytest.approx(expected)
    # Two servers at ρ = 0.5: a call waits with probability 1/3.
    expected = math.log(1 / 3 / 0.01) / (2_000 - 1_000) * 1_000
    assert capacity_costs.waits_p99_ms(1_000, 1_000, 2) == pytest.approx(expected)
    assert capacity_costs.waits_p99_ms(2_000, 1_000, 2) == math.inf
