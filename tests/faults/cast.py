"""The parties who act during the faults, made for each scenario: full budgets, fresh tokens."""

import time
from dataclasses import dataclass
from typing import Any

import httpx

from tests.actors import LivePerson, Scene, scenes
from tests.faults.clients import LIMITS, PAY, READ, Agent
from tests.faults.stage import Stage
from tests.waiting import SETTLE_SECONDS

CAP = "40.00"


def budget(value: str, period: str) -> dict[str, str]:
    return {"value": value, "currency": "EUR", "period": period, "zone": "UTC"}


# name → capability, envelope, calls a second, amount, and whether each call has an idempotency key.
ROLES: dict[str, tuple[dict[str, Any], dict[str, Any], float, str, bool]] = {
    "reader": (READ, {}, 14, "", False),
    "paced": (READ, {"max_requests_per_minute": 240, "max_burst": 5}, 8, "", False),
    "named": (READ, {}, 4, "", True),
    "payer": (PAY, {"budgets": [budget("100000.00", "total"), budget("50000.00", "day")]}, 6,
              "1.00", True),
    "capped": (PAY, {"budgets": [budget(CAP, "total"), budget("30.00", "day")]}, 4, "1.00", True),
    "counted": (READ, {"max_uses": 40}, 4, "", True),
    # Most of its calls hit one limit or the other: what the first has reserved is given back when
    # the second refuses.
    "spender": (PAY,
                {"budgets": [budget("12.00", "total")], "max_requests_per_minute": 120,
                 "max_burst": 3},
                4, "1.00", True),
    # Confirmation is asked for and given in `people.py`.
    "confirmed": (PAY,
                  {"confirm_above": {"value": "2.00", "currency": "EUR"},
                   "budgets": [budget("100000.00", "total")]},
                  0, "3.00", True),
}  # fmt: skip
# Role → the reasons with which its grant's own limits may refuse.
NOES = {
    name: {reason for limit, reason in LIMITS.items() if limit in envelope}
    | ({"confirm_above"} if "confirm_above" in envelope else set())
    for name, (_, envelope, *_) in ROLES.items()
}
# For roles with a rate limit: (calls a second, burst).
RATES = {
    name: (envelope["max_requests_per_minute"] / 60, envelope["max_burst"])
    for name, (_, envelope, *_) in ROLES.items()
    if "max_burst" in envelope
}


@dataclass
class Cast:
    """`agents` by ROLES; `victims`, whose grants will be revoked; grants that wait for `person`."""

    agents: list[Agent]
    victims: list[Agent]
    pending: list[Scene]


def cast(stage: Stage, person: LivePerson, *, victims: int, pending: int) -> Cast:
    wishes = [
        {
            "capabilities": [what],
            "envelope": envelope,
            "owner": person.email if "confirm_above" in envelope else "",
        }
        for what, envelope, *_ in ROLES.values()
    ]
    wishes += [{"capabilities": [READ], "envelope": {}}] * victims
    wishes += [{"capabilities": [READ], "envelope": {}, "owner": person.email}] * pending
    places = scenes(stage.registry, wishes)
    agents = []
    for (name, (_, envelope, per_second, amount, keyed)), place in zip(
        ROLES.items(), places, strict=False
    ):
        if "confirm_above" in envelope:
            approved = person.decide(place.grant_id, person.sign(place.grant_id))
            assert approved.status_code == 200, approved.text
        agents.append(Agent(name, place, token_of(place), per_second, amount, keyed))
    rest = places[len(agents) :]
    return Cast(
        agents,
        [Agent("victim", place, token_of(place), 0) for place in rest[:victims]],
        rest[victims:],
    )


def token_of(place: Scene, seconds: float = SETTLE_SECONDS) -> str:
    """A token of `place`; right after a fault the registry may need a while to recover."""
    end = time.monotonic() + seconds
    while True:
        try:
            return place.token()
        except (AssertionError, httpx.TransportError):
            if time.monotonic() > end:
                raise
            time.sleep(0.5)
