"""The paths that docs/operations.md keeps off the public network: all of administrators, no others.

The table of acts (docs/acts.md) and the addresses of the URLconf say whose each path is.
"""

import re
from pathlib import Path

import httpx
import pytest

from tests.acts.test_effects import table
from tests.acts.test_roles import PAGES, STAFF_DOORS, lists
from tests.acts.world import roles_of
from tests.endpoints import ENDPOINTS, WITHOUT_SLASH, address
from tests.live import ROOT
from tests.nginx import documented, nginx
from tests.postgres import free_port

pytestmark = [pytest.mark.flow, pytest.mark.nginx]
PAGE = (ROOT / "docs/operations.md").read_text()
[LOCATION] = re.findall(r"^```nginx\n(location ~ .*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
[EXPRESSION] = re.findall(r"^location ~ (\S+) \{$", LOCATION, re.MULTILINE)


def is_kept(path: str) -> bool:
    return re.search(EXPRESSION, path) is not None


def path_of(act: str) -> str:
    # `POST admin/registry/agent/ suspend` is a button of that list.
    return address("/" + act.removeprefix("POST ").partition(" ")[0], {})


def test_every_act_of_administrators_is_kept_and_no_other() -> None:
    acts = [act for act in table() if act.startswith("POST ")]
    assert {act for act in acts if is_kept(path_of(act))} == roles_of().keys()
    assert len(roles_of()) > 50 < len(acts) - len(roles_of())


def test_every_page_of_administrators_is_kept() -> None:
    pages = [*PAGES, *dict(lists()), *(each for each in WITHOUT_SLASH if "admin" in each)]
    assert [page for page in pages if not is_kept(page.format("x"))] == []


def test_no_address_of_people_or_programs_is_kept() -> None:
    theirs = (*STAFF_DOORS, "/admin")
    others = {each.route for each in ENDPOINTS if not each.route.startswith(theirs)}
    assert [each for each in others if is_kept(address(each, {}))] == []
    assert {"/logos/<str:digest>.png", "/v1/catalogue"} <= others


def test_nginx_refuses_them_to_other_networks_however_they_are_spelt(tmp_path: Path) -> None:
    site = documented(web=free_port())
    assert site.count("    location / {") == 1
    site = site.replace("    location / {", f"{LOCATION}    location / {{")
    with nginx(site, tmp_path / "nginx") as made, httpx.Client(timeout=30) as client:

        def status(path: str) -> int:
            # httpx would normalise the path.
            url = httpx.URL(made.url, raw_path=path.encode())
            return client.send(client.build_request("GET", url)).status_code

        for path in (
            *("/admin", "/admin/", "/admin/log/?day=1", "/recoveries/1/lost", "/logos/1/upload"),
            *("//admin/", "/%61dmin/", "/x/../admin/", "/admin%2Flog/", "/./resume/agent/"),
        ):
            assert status(path) == 403, path
        # No server runs behind it.
        for path in ("/", "/sign-in/", "/approvals/", "/logos/1.png", "/administration/"):
            assert status(path) == 503, path
