"""Who may do what in the control room: every act and every page, by every role (ADR 50)."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Final

import pytest
from django.db.models import Model
from pytest_django.fixtures import Settings

from approvals.admin_permissions import READS
from approvals.admin_site import site
from audit import kinds
from registry.roles import PERMISSIONS, Permission, Role
from tests.acts.test_acts import known, written
from tests.acts.test_effects import table
from tests.acts.world import ROWS, Row, World, roles_of
from tests.endpoints import ENDPOINTS, methods
from tests.flows.test_ownership import STAFF_ONLY

pytestmark = [pytest.mark.django_db, pytest.mark.sweep]

# A person is resumed by an owner alone, though the door is the same.
ONLY_OWNERS: Final = {
    "an_admin_resumes_a_human",
    "an_admin_resumes_a_human_who_was_being_recovered",
}
# A picture at /logos/ is for everyone; the other addresses there name a service provider.
STAFF_PLACES: Final = (
    "/logos/<uuid:",
    *{each for places in STAFF_ONLY.values() for each in places},
)
# The pages that belong to one row or to what an address says; `{}` is any id.
PAGES: Final = {
    "/admin/": Permission.READ_REQUESTS,
    "/admin/log/": Permission.READ_ALL,
    "/recoveries/": Permission.READ_ALL,
    "/recoveries/{}/": Permission.READ_ALL,
    "/approvers/": Permission.READ_ALL,
    "/restores/{}/": Permission.READ_ALL,
    "/resume/agent/": Permission.OPERATE,
    "/resume/agent/{}/": Permission.OPERATE,
    "/resume/human/": Permission.OWN,
    "/resume/human/{}/": Permission.OWN,
    "/resume/agent/{}/receipt": Permission.READ_ALL,
    "/denials/": Permission.DECIDE,
    "/denials/{}/": Permission.DECIDE,
    "/catalogues/{}/": Permission.READ_REQUESTS,
    "/catalogues/{}/receipt": Permission.READ_REQUESTS,
    "/logos/{}/": Permission.READ_REQUESTS,
    "/logos/{}/receipt": Permission.READ_REQUESTS,
    "/endings/agent/": Permission.OWN,
    "/restores/{}/release/": Permission.OWN,
    "/admin/invite/": Permission.OWN,
    "/admin/enrolment-code/": Permission.OWN,
    "/admin/humans/{}/role/": Permission.OWN,
    "/admin/new-service-provider/": Permission.OWN,
    "/admin/service-providers/{}/change/": Permission.OWN,
    "/admin/service-providers/{}/rotate-secret/": Permission.OWN,
    "/admin/service-providers/{}/end-previous-secrets/": Permission.OWN,
    "/admin/new-catalogue/": Permission.OWN,
}


@pytest.fixture
def world(db: None, now: datetime, settings: Settings, tmp_path: Path) -> World:
    settings.VAR_DIR, settings.KEY_DIRECTORY = tmp_path, tmp_path / "keys"
    return World(now)


def give(world: World, role: Role) -> None:
    """Write the role as a service would, but leave the administrator's session and signatures."""
    human = world.admin.human
    human.set_role(role)
    human.save(update_fields=["is_staff", "admin_role", "seal"])


def may(row: Row) -> set[str]:
    return {"owner"} if str(row) in ONLY_OWNERS else roles_of()[row.door]


@pytest.mark.parametrize("row", [row for row in ROWS if row.door in roles_of()], ids=str)
def test_DJ_16_each_act_is_refused_to_every_role_that_may_not(row: Row, world: World) -> None:
    """The complete act, signature included; then a role that may do it does."""
    act, able = row.given(world), may(row)
    for role in [role for role in Role if role not in able]:
        give(world, role)
        events = known()
        answer = act()
        told = json.loads(answer.content)
        assert (answer.status_code, told["error"]) == (403, "permission_denied"), (role, told)
        assert "Your role in this registry does not allow this." in told["error_description"]
        assert written(events) == Counter([kinds.REQUEST_REFUSED]), role
    for role in [role for role in Role if role in able and role is not Role.OWNER][:1]:
        give(world, role)
        events = known()
        assert act().status_code in {200, 302}
        assert written(events) == Counter(row.kinds + row.edge)


def test_DJ_16_every_act_of_administrators_names_its_roles() -> None:
    doors = {act for act in table() if f"/{act.removeprefix('POST ')}".startswith(STAFF_DOORS)}
    assert set(roles_of()) == doors
    assert all("owner" in roles for roles in roles_of().values())
    assert set().union(*roles_of().values()) <= set(Role)


STAFF_DOORS: Final = ("/admin/", *(each for each in STAFF_PLACES if each != "/recovery/"))


def test_DJ_16_every_list_of_the_control_room_names_who_reads_it() -> None:
    assert set(site._registry) == set(READS)


def lists() -> Iterator[tuple[str, set[Permission]]]:
    """The addresses of each list, and what they ask for."""
    for model, permission in READS.items():
        place = place_of(model)
        yield place, {permission}
        yield f"{place}export.csv", {permission, Permission.EXPORT}
        yield f"{place}{{}}/change/", {permission}


def place_of(model: type[Model]) -> str:
    return f"/admin/{model._meta.app_label}/{model._meta.model_name}/"


@pytest.mark.parametrize("role", Role)
def test_DJ_16_each_page_opens_for_the_roles_that_read_it_alone(role: Role, world: World) -> None:
    asked = {path: {permission} for path, permission in PAGES.items()} | dict(lists())
    give(world, role)
    for path, permissions in asked.items():
        answer = world.admin.get(path.format(world.alice.human.pk))
        expected = permissions <= PERMISSIONS[role]
        assert (answer.status_code != 403) is expected, (path, answer.status_code)
        if expected and "{}" not in path:
            assert answer.status_code in {200, 404}, (path, answer.status_code)


def test_DJ_16_every_page_of_administrators_is_tried_above() -> None:
    """A new page must be in a table above. Django's own pages show and change no rows."""
    theirs = {"jsi18n", "autocomplete", "login", "logout", "view_on_site", "app_list", None}
    tried = {path.replace("{}", "*") for path in [*PAGES, *dict(lists())]}
    found = set()
    for each in ENDPOINTS:
        name, is_admin = each.pattern.name, each.route.startswith("/admin/")
        is_page = is_admin or "GET" in methods(each.pattern)
        if not is_page or not each.route.startswith(STAFF_DOORS) or name in theirs:
            continue
        if not str(name).endswith(("_add", "_delete", "_history")):
            route = each.route.replace("<str:kind>", "agent")
            found.add(re.sub("<[^>]+>", "*", route))
    assert found - tried == set()
