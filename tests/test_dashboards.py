"""The dashboards of deploy/grafana: what Grafana's own types know, and a layout to read.

tests/production/test_prometheus.py runs each panel's query on data of the installed system.
"""

import copy
import itertools
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder

from tests.live import ROOT
from tests.test_alert_rules import metrics_table, series_of

with warnings.catch_warnings():
    # It prefers the format of Grafana 12, which older ones cannot import.
    warnings.simplefilter("ignore", DeprecationWarning)
    from grafana_foundation_sdk.models.dashboard import Dashboard

BOARDS = sorted((ROOT / "deploy/grafana/dashboards").glob("*.json"))
# Grafana's grid.
COLUMNS = 24
MOST_PANELS = 10
plugins.register_default_plugins()


def board(path: Path) -> Any:
    return json.loads(path.read_text())


def unknown(ours: Any, theirs: Any, where: str = "") -> list[str]:
    """Where `theirs` lacks or changes what `ours` says; it may add defaults."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        lost = [f"{where}.{key}" for key in ours if key not in theirs]
        kept = (key for key in ours if key in theirs)
        return lost + [
            at for key in kept for at in unknown(ours[key], theirs[key], f"{where}.{key}")
        ]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [at for number, pair in pairs for at in unknown(*pair, f"{where}[{number}]")]
    return [] if ours == theirs else [where]


def as_grafana_reads(told: Any) -> Any:
    """Through the types that Grafana generates from its schema: what they do not know is gone."""
    return json.loads(json.dumps(Dashboard.from_json(copy.deepcopy(told)), cls=JSONEncoder))


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_grafanas_types_know_every_field_of_a_dashboard(path: Path) -> None:
    told = board(path)
    assert unknown(told, as_grafana_reads(told)) == []


def test_grafanas_types_do_not_know_a_misspelled_field() -> None:
    told = board(BOARDS[0])
    told["panels"][0]["options"]["colourMode"] = "value"
    told["panels"][1]["gridpos"] = told["panels"][1].pop("gridPos")
    assert unknown(told, as_grafana_reads(told)) == [
        ".panels[0].options.colourMode",
        ".panels[1].gridpos",
    ]


def test_there_are_five_dashboards_with_an_address_of_their_own() -> None:
    assert len(BOARDS) == 5
    assert {board(path)["uid"] for path in BOARDS} == {f"agentauth-{path.stem}" for path in BOARDS}


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_the_panels_of_a_dashboard_are_few_and_do_not_overlap(path: Path) -> None:
    panels = board(path)["panels"]
    assert len(panels) <= MOST_PANELS
    assert [each["id"] for each in panels] == list(range(1, len(panels) + 1))
    for one, other in itertools.combinations([each["gridPos"] for each in panels], 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart, (one, other)
    assert all(each["gridPos"]["x"] + each["gridPos"]["w"] <= COLUMNS for each in panels)
    assert len({each["title"] for each in panels}) == len(panels)


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_a_panel_asks_the_chosen_prometheus_for_series_that_exist(path: Path) -> None:
    told = board(path)
    [variable] = told["templating"]["list"]
    assert (variable["type"], variable["query"]) == ("datasource", "prometheus")
    for panel in told["panels"]:
        assert panel["datasource"] == {"type": "prometheus", "uid": f"${{{variable['name']}}}"}
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert len({each["refId"] for each in panel["targets"]}) == len(panel["targets"])
        for target in panel["targets"]:
            assert series_of(target["expr"]) <= metrics_table(), target
