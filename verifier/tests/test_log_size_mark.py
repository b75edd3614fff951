"""The mark of the log's size in Redis moves only forward, and forged marks are ignored (SA-13)."""

from collections.abc import Iterator

import pytest
from pytest_django.fixtures import Settings

from audit.checkpoints.rollback_check import Mark
from tests import redis_servers
from verifier.stores import redis_owner
from verifier.stores.log_size_mark import KEY, advance_mark, read_mark

pytestmark = pytest.mark.redis
FIVE, NINE = Mark("", 5, "05" * 32), Mark("", 9, "09" * 32)
# The mark of the log after a restore.
OTHER = Mark("20261129T0100", 2, "02" * 32)


@pytest.fixture(autouse=True)
def server(settings: Settings) -> Iterator[redis_servers.Server]:
    with redis_servers.server() as running:
        settings.REDIS_URL = running.registry_url
        yield running


def test_a_mark_moves_forward_only() -> None:
    assert read_mark() is None
    assert advance_mark(FIVE) is None
    assert advance_mark(NINE) == FIVE
    # The slower of two jobs.
    assert advance_mark(FIVE) == NINE
    assert read_mark() == NINE


def test_a_mark_of_another_log_is_replaced_only_where_that_is_meant() -> None:
    advance_mark(NINE)
    assert advance_mark(OTHER) == NINE
    assert read_mark() == NINE
    assert advance_mark(OTHER, instead_of=NINE) == NINE
    assert read_mark() == OTHER


def test_the_mark_in_another_registrys_redis_is_neither_read_nor_moved(
    server: redis_servers.Server,
) -> None:
    """With a shared SECRET_KEY its MAC fits, and it would say that this database was set back."""
    advance_mark(FIVE)
    server.client().set(redis_owner.KEY, "https://other.example.org")
    assert read_mark() is None
    assert advance_mark(NINE) is None
    server.client().delete(redis_owner.KEY)
    assert read_mark() == FIVE


@pytest.mark.parametrize("how", ["as it was", "another's MAC", "longer", "no text"])
def test_SA_13_a_mark_that_another_party_wrote_is_ignored_and_replaced(
    server: redis_servers.Server, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Otherwise one SET could halt the registry until an operator suspends every grant."""
    advance_mark(FIVE)
    mac = server.client().get(KEY).decode().rpartition(" ")[2]
    forged = {
        "as it was": NINE.text,
        "another's MAC": f"{NINE.text} {mac}",
        "longer": f"{FIVE.text}0 {mac}",
        "no text": b"\xff",
    }[how]
    server.client().set(KEY, forged)
    assert read_mark() is None
    assert "does not contain a mark of this registry" in caplog.text
    advance_mark(FIVE)
    assert read_mark() == FIVE


def test_a_mark_counts_after_a_rotation_of_the_secret_key(settings: Settings) -> None:
    advance_mark(NINE)
    settings.SECRET_KEY_FALLBACKS = [settings.SECRET_KEY]
    settings.SECRET_KEY = "another-secret-key-of-fifty-characters-and-more-0123"
    assert read_mark() == NINE
    assert advance_mark(FIVE) == NINE
    settings.SECRET_KEY_FALLBACKS = []
    assert read_mark() is None
