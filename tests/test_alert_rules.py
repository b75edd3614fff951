"""The alert rules of deploy/prometheus, by promtool, and the pages of docs/runbook they lead to."""

import re
import shlex
import subprocess
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.core.management import get_commands, load_command_class

from agentauth.job_table import JOBS
from tests.faults.alert_faults import ALONE, FAULTS
from tests.live import ROOT
from tests.prometheus import DEPLOY, alert_rules, rule_files, shortened
from tests.test_cases import REFERENCE, names

TESTS = sorted((DEPLOY / "tests").glob("*.yml"))
PAGES = sorted((ROOT / "docs/runbook").glob("*.md"))
# A page without an alert explains a procedure.
PROCEDURES = [page for page in PAGES if "\n\nProcedure.\n\n" in page.read_text()]
# Alerts that a real fault fires (tests/faults/test_alerts.py).
FIRED = {alert for fault in FAULTS.values() for alert in fault.alerts} | ALONE
MAX_PAGE_LINES = 60
# Of the fast and the slow alert on an objective: window and burn rate (docs/operations.md).
BURN_RATES = [
    [("1h", "14.4"), ("5m", "14.4"), ("6h", "6"), ("30m", "6")],
    [("1d", "3"), ("2h", "3"), ("3d", "1"), ("6h", "1")],
]
# Programs that install.md installs, or that Debian always has.
PROGRAMS = {
    "systemctl", "journalctl", "curl", "redis-cli", "runuser", "df", "openssl", "timedatectl",
}  # fmt: skip
UNITS = {
    "agentauth-web", "agentauth-verifier", "agentauth-jobs", "agentauth-backup.timer",
    "redis-server", "agentauth-*",
}  # fmt: skip
SHELL = re.compile(r"```sh\n(.*?)```", re.DOTALL)
PROMQL = re.compile(r"```promql\n(.*?)```", re.DOTALL)
# The marker is followed by the command's arguments, up to the closing backtick.
TYPED = re.compile(r"`(agentauth [^`…]+)`")


def metrics_table() -> set[str]:
    """The series that docs/operations.md lists."""
    page = (ROOT / "docs/operations.md").read_text().partition("\n## Metrics\n")[2]
    rows = [row.split(" | ")[0] for row in page.partition("\n## ")[0].splitlines()]
    return {name for row in rows if row.startswith("| `") for name in re.findall(r"`(\w+)`", row)}


def series_of(query: str) -> set[str]:
    """The names of our series in a query, as the table of docs/operations.md has them."""
    # Not the recorded ratios, which have a colon.
    found = re.findall(r"(?<![\w:])agentauth_\w+", query)
    return {re.sub(r"_(bucket|count|sum)$", "", name) for name in found}


@pytest.mark.slow
@pytest.mark.prometheus
def test_the_rules_pass_their_own_tests() -> None:
    done = subprocess.run(
        ["promtool", "test", "rules", *TESTS], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_fired_by_a_real_fault() -> None:
    assert {rule["alert"] for rule in alert_rules()} == FIRED


@pytest.mark.prometheus
def test_the_configuration_and_the_shortened_rules_are_valid(tmp_path: Path) -> None:
    for path in rule_files():
        (tmp_path / path.name).write_text(shortened(path.read_text()))
    commands: list[list[str | Path]] = [
        ["config", "--syntax-only", DEPLOY / "prometheus.yml"],
        ["rules", *tmp_path.glob("*.yml")],
    ]
    for command in commands:
        done = subprocess.run(
            ["promtool", "check", *command], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_is_seen_to_fire_and_to_stay_quiet() -> None:
    tried = [
        case
        for path in TESTS
        for test in yaml.safe_load(path.read_text())["tests"]
        for case in test["alert_rule_test"]
    ]
    names = {rule["alert"] for rule in alert_rules()}
    assert {case["alertname"] for case in tried if case["exp_alerts"]} == names
    assert {case["alertname"] for case in tried if not case["exp_alerts"]} == names


@pytest.mark.parametrize("rule", alert_rules(), ids=lambda rule: rule["alert"])
def test_an_alert_has_a_severity_a_sentence_and_a_page(rule: dict[str, Any]) -> None:
    assert rule["labels"].keys() == {"severity"}
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert rule["annotations"].keys() == {"summary", "runbook"}
    summary = rule["annotations"]["summary"]
    assert re.fullmatch(r"[^.]+(\.\d[^.]*)?\.", re.sub(r"\{\{.*?\}\}", "x", summary)), summary
    page = ROOT / rule["annotations"]["runbook"]
    assert page in PAGES
    # Its own page says which alerts lead there, and whom they wake.
    head = page.read_text().partition("\n\n**")[0]
    assert f"`{rule['alert']}`" in head
    assert rule["labels"]["severity"] in head


def test_rules_read_only_series_that_operations_lists() -> None:
    for path in rule_files():
        for group in yaml.safe_load(path.read_text())["groups"]:
            for rule in group["rules"]:
                assert series_of(rule["expr"]) <= metrics_table(), rule


def test_the_objectives_of_operations_are_those_of_the_rules() -> None:
    page = (ROOT / "docs/operations.md").read_text().partition("\n**Objectives**")[2]
    rows = [
        row.split(" | ") for row in page.partition("\n\nEach")[0].splitlines() if " % | " in row
    ]
    ratios = ("agentauth:verify_errors", "agentauth:verify_slow", "agentauth:log_late")
    for (_, share, _), ratio in zip(rows, ratios, strict=True):
        allowed = f"{1 - float(share.removesuffix(' %')) / 100:.3g}"
        reads = [rule["expr"] for rule in alert_rules() if f"{ratio}:" in rule["expr"]]
        assert [re.findall(r"ratio_rate(\w+) > ([\d.]+) ", expr) for expr in reads] == BURN_RATES
        assert all(set(re.findall(r"\* (\S+)", expr)) == {allowed} for expr in reads)
    rules = (DEPLOY / "rules/slo.yml").read_text()
    assert ("over 0.25 s" in rows[1][2], 'le="0.25"' in rules) == (True, True)
    assert ("over 120 s" in rows[2][2], "> bool 120" in rules) == (True, True)


def test_a_page_of_the_runbook_is_that_of_an_alert_or_a_procedure() -> None:
    alerts = {ROOT / rule["annotations"]["runbook"] for rule in alert_rules()}
    assert alerts.isdisjoint(PROCEDURES)
    assert alerts | set(PROCEDURES) == set(PAGES)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_a_page_of_the_runbook_says_when_it_was_drilled(page: Path) -> None:
    """By which tests, or what was done by hand; and which alerts were not fired."""
    head, _, end = page.read_text().rpartition("\n\n**Wake someone**")
    dates = re.findall(r"\d{4}-\d\d-\d\d", end)
    assert dates
    assert all(date.fromisoformat(each) <= datetime.now(UTC).date() for each in dates)
    by_tests, by_hand = REFERENCE.findall(end), " by hand: " in end
    assert [each for each in by_tests if each[1] not in names(each[0])] == []
    assert ("\n\nDrilled: " in end) == bool(by_tests or by_hand)
    assert "\n\nDrilled: " in end or "\n\nNot drilled. " in end
    if page not in PROCEDURES:
        alerts, unfired = (set(re.findall(r"`(AgentAuth\w+)`", part)) for part in (head, end))
        fired = alerts - unfired if by_tests else set()
        assert fired == alerts & FIRED


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_a_page_of_the_runbook_fits_one_screen(page: Path) -> None:
    text = page.read_text()
    assert len(text.splitlines()) <= MAX_PAGE_LINES
    first = "**When.**" if page in PROCEDURES else "**What it means.**"
    parts = [first, "**Callers see.**", "## Check", "## Do", "**Wake someone**"]
    places = [text.find(part) for part in parts]
    assert -1 not in places
    assert places == sorted(places)
    named = set(re.findall(r"`(AgentAuth\w+)`", text))
    assert named <= {rule["alert"] for rule in alert_rules()}


def test_the_page_on_jobs_says_what_stops_without_each_job() -> None:
    page = (ROOT / "docs/runbook/jobs.md").read_text()
    rows = re.findall(r"^\| (`\S.*`) \| ", page, re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`(.+?)`", row)]
    patterns = {re.escape(name).replace("…", r"\w+") for name in named}
    jobs = {job.name for job in JOBS}
    fits = {(each, name) for each in patterns for name in jobs if re.fullmatch(each, name)}
    assert ({each for each, _ in fits}, {name for _, name in fits}) == (patterns, jobs)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_each_command_of_a_page_exists_with_its_options(page: Path) -> None:
    text = page.read_text()
    lines = [line for block in SHELL.findall(text) for line in block.splitlines()]
    assert lines or PROMQL.findall(text)
    for line in filter(str.strip, [*lines, *TYPED.findall(text)]):
        program, *arguments = shlex.split(line)
        if program == "agentauth":
            check_command(arguments)
            continue
        assert program in PROGRAMS, line
        if program in {"systemctl", "journalctl"}:
            units = [each for each in arguments if each.startswith(("agentauth", "redis"))]
            assert set(units) <= UNITS, line


def check_command(arguments: list[str]) -> None:
    """Raises AssertionError unless the management command takes these arguments."""
    name, *rest = [each for each in arguments if each != "--owner"]
    commands = get_commands()
    assert name in commands, name
    app = commands[name]
    command = app if not isinstance(app, str) else load_command_class(app, name)
    parser = command.create_parser("agentauth", name)
    known = {option for action in parser._actions for option in action.option_strings}
    assert {each for each in rest if each.startswith("--")} <= known, arguments
