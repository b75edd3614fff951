"""Every installed address without credentials: exactly what opens in development opens here."""

from collections.abc import Iterator
from functools import partial

import pytest

from approvals.tests.cast import browser
from tests.actors import Scene, scene
from tests.asking import SHARED, answered
from tests.endpoints import METHODS, ROUTES, address, allowed
from tests.production.registry import ProductionRegistry
from tests.production.wire import over_the_wire
from tests.sampling import one_in

pytestmark = pytest.mark.production


@pytest.fixture(scope="module")
def place(production: ProductionRegistry) -> Scene:
    return scene(production, capabilities=[{"type": "read", "resource": "calendar"}], envelope={})


@pytest.fixture(autouse=True)
def _wire(production: ProductionRegistry) -> Iterator[None]:
    """Each answer is checked against its description and the header table."""
    with over_the_wire(production):
        yield


@pytest.mark.parametrize("route", one_in(3, ROUTES))
def test_DJ_15_without_credentials_nothing_opens_in_production(route: str, place: Scene) -> None:
    ids = {"grant_id": place.grant_id, "agent_id": place.agent_id}
    path, client = address(route, ids), browser()
    for method in METHODS:
        # nginx itself refuses it.
        if method != "TRACE":
            ask = partial(client.generic, method, path, "{}", content_type="application/json")
            answer = answered(ask, later=SHARED)
            assert answer.status_code in allowed(method, route), (
                f"{method} {path} {answer.status_code}"
            )
