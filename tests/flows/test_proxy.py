"""Behind nginx as docs/install.md prints it, with pooled connections: no client costs another a
call.

Each test has its own nginx: a server behind it is down, and its log shows each failed connection to
us. That it forwards calls at all is tested throughout tests/production.
"""

import itertools
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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


def test_the_printed_site_answers_for_a_server_that_is_away(tmp_path: Path) -> None:
    # A port that is held, so that no other test's server takes it, but where nothing listens.
    with socket.socket() as away:
        away.bind(("127.0.0.1", 0))
        with nginx(documented(web=away.getsockname()[1]), tmp_path / "nginx") as made:
            answers = [
                httpx.get(f"{made.url}/health/ready", timeout=30),
                httpx.post(f"{made.url}/v1/verify", json={}, timeout=30),
            ]
    for answer in answers:
        assert answer.status_code == 503
        assert answer.headers["Content-Type"] == "application/json"
        assert int(answer.headers["Retry-After"]) >= 1
        assert answer.json().keys() == {"error", "error_description"}
        assert answer.json()["error"] == "temporarily_unavailable"
    # The log keeps the upstream's own status.
    assert [line.split()[:2] for line in made.asked] == [["503", "502"]] * 2


SECRET = "a-code-that-opens-an-account"
# Each reaches the same page, or is close enough to one that a person could send it.
SECRET_PATHS = [
    *(f"/{page}/{SECRET}/" for page in ("claim", "recover", "setup")),
    f"/setup/{SECRET}/finish",
    f"//claim/{SECRET}/",
    f"/%73etup/{SECRET}/",
]


def _log_of(path: str, web: int, directory: Path) -> str:
    """What nginx logged for this path and for another one."""
    with nginx(documented(web=web), directory) as made:
        for each in (path, "/health/live"):
            httpx.get(f"{made.url}{each}", timeout=30)
    return "\n".join([*made.asked, made.errors])


@pytest.mark.parametrize("path", SECRET_PATHS)
def test_a_secret_in_a_path_is_in_no_log_of_the_proxy(
    registry: LiveRegistry, tmp_path: Path, path: str
) -> None:
    answered = _log_of(path, registry.port, tmp_path / "answered")
    with socket.socket() as away:
        away.bind(("127.0.0.1", 0))
        refused = _log_of(path, away.getsockname()[1], tmp_path / "refused")
    for found in (answered, refused):
        assert SECRET not in found
        assert "GET /health/live" in found
    assert "connect() failed" in refused


# --- One client and the others -------------------------------------------------------------------

HONEST_CALLS = 150
LARGE = b"x" * 100_000
# Each reason for which an outsider's body is not read.
UNREAD = [
    "/nothing",
    "/v1/nothing",
    "/v1/verify",
    "/v1/verify/batch",
    "/v1/introspect",
    "/v1/agents",
    "/v1/revoke",
]


class Stranger(threading.Thread):
    """Posts large bodies to one address after another, until told to end."""

    def __init__(self, url: str, host: str) -> None:
        super().__init__()
        self.client = httpx.Client(base_url=url, headers={"Host": host}, timeout=30)
        self.statuses: Counter[int] = Counter()
        self.ends = threading.Event()

    def run(self) -> None:
        with self.client:
            for path in itertools.cycle(UNREAD):
                if self.ends.is_set():
                    return
                self.statuses[self.client.post(path, content=LARGE).status_code] += 1


@pytest.mark.long
def test_SA_11_a_strangers_large_bodies_cost_a_provider_no_call(
    registry: LiveRegistry, proxy: Nginx
) -> None:
    made = registry.manage("create_service_provider", "Honest", "--audience", "http://127.0.0.1:9")
    auth = (made["client_id"], made["client_secret"])
    host = f"localhost:{registry.port}"
    question = {"token": "a.b.c", "proof": "a.b.c", "method": "GET", "url": "http://127.0.0.1:9/"}
    strangers = [Stranger(proxy.url, host) for _ in range(6)]
    for each in strangers:
        each.start()
    try:
        with httpx.Client(
            base_url=proxy.url, auth=auth, headers={"Host": host}, timeout=30
        ) as client:
            answers = [client.post("/v1/verify", json=question) for _ in range(HONEST_CALLS)]
    finally:
        for each in strangers:
            each.ends.set()
            each.join(60)
    # A busy machine answers 503 itself, which is an answer.
    assert {each.status_code for each in answers} - {503} == {200}
    assert all(each.statuses.total() > 0 for each in strangers)
    # The site answers 503 in place of nginx's own 502, which stays in its log.
    assert "[error]" not in proxy.errors


@pytest.mark.long
def test_SA_11_load_after_a_pause_meets_no_connection_that_is_closing(
    registry: LiveRegistry, proxy: Nginx
) -> None:
    host = {"Host": f"localhost:{registry.port}"}
    with (
        ThreadPoolExecutor(24) as pool,
        httpx.Client(base_url=proxy.url, headers=host, timeout=30) as client,
    ):

        def post(_: int) -> int:
            return client.post("/v1/verify", json={}).status_code

        for seconds in (1.9, 2.0, 2.1, 3.0):
            assert set(pool.map(post, range(120))) - {503} == {401}
            time.sleep(seconds)
        assert set(pool.map(post, range(120))) - {503} == {401}
    assert "[error]" not in proxy.errors
