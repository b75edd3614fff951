"""A caching proxy before a service provider caches public answers, and nothing protected."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.flows.test_sdk_service_provider import Place
from tests.live import LiveRegistry
from tests.nginx import nginx

pytestmark = [pytest.mark.flow, pytest.mark.nginx]

# Caches everything that no header forbids, for any client.
SITE = """
proxy_cache_path kept keys_zone=kept:1m;
server {{
    listen 443 ssl;
    location / {{
        proxy_pass {audience};
        proxy_cache kept;
        proxy_cache_valid any 5m;
        add_header X-Cache $upstream_cache_status always;
    }}
}}
"""


@pytest.fixture
def place(sqlite_registry: LiveRegistry, tmp_path: Path) -> Iterator[Place]:
    made = Place(sqlite_registry, tmp_path)
    with made.serving():
        yield made


@pytest.mark.long
def test_SA_5_a_proxy_that_caches_keeps_nothing_protected(place: Place, tmp_path: Path) -> None:
    with nginx(SITE.format(audience=place.audience), tmp_path / "nginx") as proxy:
        open_pages = [httpx.get(f"{proxy.url}/", trust_env=False) for _ in range(2)]
        assert [each.headers["X-Cache"] for each in open_pages] == ["MISS", "HIT"]
        for path in ("/calendar/work", "/calendar/home"):
            asked = httpx.get(proxy.url + path, headers=place.headers("GET", path), trust_env=False)
            assert (asked.status_code, asked.headers["X-Cache"]) == (200, "MISS")
            answer = httpx.get(proxy.url + path, trust_env=False)
            assert (answer.status_code, answer.headers["X-Cache"]) == (401, "MISS")
