"""Who acts while the faults happen: made anew for each scenario, so that each begins with whole budgets and young tokens."""

import time
from typing import Any

import httpx

from tests.actors import Scene, scenes
from tests.faults.clients import PAY, Agent
from tests.faults.stage import Stage

CALENDAR = {"type": "read", "resource": "calendar"}
CAP = "40.00"


def budget(value: str, period: str) -> dict[str, str]:
    return {"value": value, "currency": "EUR", "period": period, "zone": "UTC"}


# name → capability, envelope, calls a second, amount, and whether each call has a name of its own.
ROLES: dict[str, tuple[dict[str, Any], dict[str, Any], float, str, bool]] = {
    "reader": (CALENDAR, {}, 14, "", False),
    "paced": (CALENDAR, {"max_requests_per_minute": 240, "max_burst": 5}, 8, "", False),
    "named": (CALENDAR, {}, 4, "", True),
    "payer": (PAY, {"budgets": [budget("100000.00", "total"), budget("50000.00", "day")]}, 6, "1.00", True),
    "capped": (PAY, {"budgets": [budget(CAP, "total"), budget("30.00", "day")]}, 4, "1.00", True),
    "counted": (CALENDAR, {"max_uses": 40}, 4, "", True),
}
# Of those that have a rate: so many a second, and so many at once.
RATES = {
    name: (envelope["max_requests_per_minute"] / 60, envelope["max_burst"])
    for name, (_, envelope, *_) in ROLES.items()
    if "max_burst" in envelope
}


def cast(stage: Stage, victims: int) -> tuple[list[Agent], list[Agent]]:
    """Agents of every role, and as many whose grants will be revoked."""
    wishes = [{"capabilities": [what], "envelope": envelope} for what, envelope, *_ in ROLES.values()]
    wishes += [{"capabilities": [CALENDAR], "envelope": {}}] * victims
    places = scenes(stage.registry, wishes)
    tokens = [token_of(place) for place in places]
    agents = [
        Agent(name, place, token, per_second, amount, keyed)
        for (name, (_, _, per_second, amount, keyed)), place, token in zip(
            ROLES.items(), places, tokens, strict=False
        )
    ]
    rest = zip(places[len(agents) :], tokens[len(agents) :], strict=True)
    return agents, [Agent("victim", place, token, 0) for place, token in rest]


def token_of(place: Scene, seconds: float = 20) -> str:
    """Its token; right after a fault the registry may still find its own way back."""
    end = time.monotonic() + seconds
    while True:
        try:
            return place.token()
        except (AssertionError, httpx.TransportError):
            if time.monotonic() > end:
                raise
            time.sleep(0.5)
