"""A real Prometheus with the configuration and the rules of deploy/prometheus."""

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import httpx
import yaml

from tests.live import ROOT
from tests.postgres import free_port

DEPLOY = ROOT / "deploy/prometheus"
# In tests, a scrape and an evaluation come this often, not each 15 s.
EVERY = "2s"
# In tests of alerts, all durations are this many times shorter: five minutes are ten seconds.
SHORTER = 30
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_DURATION = re.compile(r"((?:\bfor: |\[|\boffset ))(\d+)([smhd])\b")


def rule_files() -> list[Path]:
    return sorted((DEPLOY / "rules").glob("*.yml"))


def alert_rules() -> list[dict[str, Any]]:
    """Every alert as the rules define it."""
    groups = [
        group for path in rule_files() for group in yaml.safe_load(path.read_text())["groups"]
    ]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


def shortened(rules: str, shorter: int = SHORTER) -> str:
    """The rules with each `for`, range and offset divided by `shorter`, but at least 1 s.

    Thresholds stay as they are, and so do names such as `…:ratio_rate5m`.
    """

    def divided(found: re.Match[str]) -> str:
        before, number, unit = found.groups()
        return f"{before}{max(1, int(number) * _SECONDS[unit] // shorter)}s"

    return _DURATION.sub(divided, rules)


def configuration(targets: Mapping[str, Sequence[int]], token_file: Path) -> dict[str, Any]:
    """The documented configuration, with the ports of `targets` by kind of process.

    What the file has as a comment for Celery counts.
    """
    text = (DEPLOY / "prometheus.yml").read_text()
    told = yaml.safe_load(re.sub(r"^( +)# (- targets|  labels)", r"\1\2", text, flags=re.MULTILINE))
    [job] = told["scrape_configs"]
    assert job["authorization"]["credentials_file"] == "/etc/prometheus/agentauth-token"
    job["authorization"]["credentials_file"] = str(token_file)
    documented = [each["labels"]["process"] for each in job["static_configs"]]
    assert targets.keys() <= set(documented)
    job["static_configs"] = [
        {"targets": [f"127.0.0.1:{port}" for port in targets[kind]], "labels": {"process": kind}}
        for kind in documented
        if kind in targets
    ]
    told["global"] = {
        "scrape_interval": EVERY,
        "scrape_timeout": EVERY,
        "evaluation_interval": EVERY,
    }
    return dict(told)


class Prometheus:
    """A server for the processes at these ports, by kind; its alerts come `shorter`."""

    def __init__(
        self,
        directory: Path,
        targets: Mapping[str, Sequence[int]],
        token: str,
        *,
        shorter: int = SHORTER,
    ) -> None:
        self.port, self.directory = free_port(), directory
        (directory / "token").write_text(token)
        told = configuration(targets, directory / "token")
        (directory / "prometheus.yml").write_text(yaml.safe_dump(told))
        (directory / "rules").mkdir()
        for path in rule_files():
            (directory / "rules" / path.name).write_text(shortened(path.read_text(), shorter))

    def __enter__(self) -> Self:
        command = [
            "prometheus",
            f"--config.file={self.directory}/prometheus.yml",
            f"--storage.tsdb.path={self.directory}/data",
            f"--web.listen-address=127.0.0.1:{self.port}",
        ]
        with (self.directory / "prometheus.log").open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def targets(self) -> dict[str, tuple[str, str]]:
        """Kind of process → its health and last error; empty while Prometheus starts."""
        found = self._asked("targets")
        active = found["data"]["activeTargets"] if found else []
        return {each["labels"]["process"]: (each["health"], each["lastError"]) for each in active}

    def samples(self, query: str) -> list[tuple[dict[str, str], float]]:
        """The labels and the value of each series; empty while Prometheus starts."""
        found = self._asked("query", query=query)
        rows = found["data"]["result"] if found else []
        return [(row["metric"], float(row["value"][1])) for row in rows]

    def values(self, query: str) -> dict[str, float]:
        """Kind of process → value."""
        return {labels.get("process", ""): value for labels, value in self.samples(query)}

    def firing(self) -> set[str]:
        """The names of the alerts that fire."""
        return {labels["alertname"] for labels, _ in self.samples('ALERTS{alertstate="firing"}')}

    def _asked(self, what: str, **params: str) -> Any:
        url = f"http://127.0.0.1:{self.port}/api/v1/{what}"
        try:
            answer = httpx.get(url, params=params, timeout=10)
        except httpx.TransportError:
            assert self.process.poll() is None, (self.directory / "prometheus.log").read_text()
            return None
        if answer.status_code == 400:
            raise AssertionError(f"{params}: {answer.json()['error']}")
        return answer.json() if answer.is_success else None
