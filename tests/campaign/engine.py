"""Runs a campaign: mutants from a seed, each with its required error, counted by kind and rule."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from agentauth.protocol.errors import AgentAuthError
from tests.campaign.bodies import REQUESTS
from tests.campaign.certificates import CERTIFIED
from tests.campaign.kinds import SIGNED
from tests.campaign.passkeys import CEREMONIES

KINDS: tuple[Any, ...] = (*SIGNED, *CERTIFIED, *CEREMONIES, *REQUESTS)
ROOT = Path(__file__).resolve().parents[2]
# The reasons in docs/protocol.md section 8 and those of proofs; a caller could not act on any
# other.
REASONS = {
    "proof": {"malformed", "signature", "method", "url", "iat", "ath", "body"},
    "token": {"malformed", "unknown", "expired", "not_yet_valid"},
}
SHOWN = 10


@dataclass
class Result:
    """The outcome of all mutants. `accepted` and `crashed` hold what reproduces them."""

    refused: Counter[str] = field(default_factory=Counter)
    accepted: list[str] = field(default_factory=list)
    crashed: list[str] = field(default_factory=list)

    def add(self, other: "Result") -> None:
        self.refused += other.refused
        self.accepted += other.accepted
        self.crashed += other.crashed

    @property
    def total(self) -> int:
        return self.refused.total() + len(self.accepted) + len(self.crashed)

    def by_kind(self) -> Counter[str]:
        kinds: Counter[str] = Counter()
        for name, count in self.refused.items():
            kinds[name.split("/")[0]] += count
        return kinds

    def table(self) -> str:
        lines = [
            f"{kind:<16}{count:>10,} refused" for kind, count in sorted(self.by_kind().items())
        ]
        faults = f"{len(self.accepted)} accepted, {len(self.crashed)} failed otherwise"
        return "\n".join([*lines, f"{'all':<16}{self.refused.total():>10,} refused, {faults}"])


def attack(kind: Any, seed: int) -> tuple[str, str | None, str]:
    """Try one mutant. Returns its rule, what went wrong (None if refused rightly), the mutant."""
    mutant, check = kind.attack(Random(seed))
    rule = f"{kind.name}/{mutant.rule}"
    shown = f"{rule} seed {seed}: {mutant.value!r:.2000}"
    try:
        check(mutant.value)
    except kind.refusal as error:
        allowed = REASONS.get(kind.name)
        wrong = allowed is not None and error.reason not in allowed
        return rule, f"reason {error.reason}" if wrong else None, shown
    except AgentAuthError as error:
        return rule, f"refused as {type(error).__name__}", shown
    except Exception as error:  # noqa: BLE001 — over HTTP any other exception would be a 500
        return rule, f"raised {type(error).__name__}: {error}", shown
    return rule, "accepted", shown


def campaign(*, count: int, seed: int) -> Result:
    """Try `count` mutants in this process, shared among the kinds by weight."""
    result = Result()
    weights = sum(kind.share for kind in KINDS)
    for index, kind in enumerate(KINDS):
        kind.valid()
        for number in range(-(-count * kind.share // weights)):
            rule, fault, shown = attack(kind, (seed << 40) + (index << 32) + number)
            if fault is None:
                result.refused[rule] += 1
            elif fault == "accepted":
                result.accepted.append(shown)
            else:
                result.crashed.append(f"{fault}: {shown}")
    return result


def in_processes(*, count: int, seed: int, processes: int) -> Result:
    """Like `campaign`, in several processes, each with its own range of seeds."""
    env = {**os.environ, "AGENTAUTH_TESTING": "1"}
    share = str(-(-count // processes))
    commands = [
        [sys.executable, "-m", "tests.campaign", share, str(seed + number), "--json"]
        for number in range(processes)
    ]
    running = [
        subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
        for command in commands
    ]
    return combined(json.loads(each.communicate()[0]) for each in running)


def combined(parts: Iterable[dict[str, Any]]) -> Result:
    whole = Result()
    for part in parts:
        whole.add(Result(Counter(part["refused"]), part["accepted"], part["crashed"]))
    return whole


def timed(result: Result, began: float) -> str:
    seconds = time.monotonic() - began
    return f"{result.table()}\n{seconds:.0f} s, {result.total / max(seconds, 0.001):,.0f} a second"
