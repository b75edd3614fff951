"""Behind nginx, as docs/install.md prints it, with a pool of connections to us: what one client does costs no other a call."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.live import LiveRegistry
from tests.nginx import Nginx, documented, nginx

pytestmark = [pytest.mark.flow, pytest.mark.nginx]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveRegistry]:
    made = LiveRegistry(tmp_path_factory.mktemp("behind"), workers=2, env={"TRUSTED_PROXIES": "1"})
    made.prepare()
    made.start()
    yield made
    made.stop()


@pytest.fixture
def proxy(registry: LiveRegistry, tmp_path: Path) -> Iterator[Nginx]:
    with nginx(documented(web=registry.port), tmp_path / "nginx") as made:
        yield made


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_the_printed_site_passes_calls_on(registry: LiveRegistry, tmp_path: Path, tls: bool) -> None:
    with (
        nginx(documented(web=registry.port), tmp_path / "nginx", tls=tls) as made,
        httpx.Client(base_url=made.url, verify=made.trust) as client,
    ):
        host = {"Host": f"localhost:{registry.port}"}
        assert client.get("/health/live", headers=host).status_code == 200
        refused = client.post("/v1/verify", json={}, headers=host)
        assert (refused.status_code, refused.headers["Content-Type"]) == (401, "application/json")
    assert made.errors == ""
    assert made.asked == ["200 200 GET /health/live HTTP/1.1", "401 401 POST /v1/verify HTTP/1.1"]
