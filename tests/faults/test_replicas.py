"""Our connection to a primary and its synchronous replica: what is committed, and failover."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pytest
from django.db import DEFAULT_DB_ALIAS, OperationalError, connections

from agentauth.postgresql.base import DatabaseWrapper
from agentauth.settings import database
from tests import postgres

pytestmark = [pytest.mark.faults, pytest.mark.flow, pytest.mark.postgres]


@dataclass
class Pair:
    primary: postgres.Server
    replica: postgres.Server


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with postgres.server() as primary, postgres.replica(primary) as replica:
        primary.say("CREATE TABLE done (what text)")
        yield Pair(primary, replica)


@pytest.fixture
def ours(pair: Pair, django_db_blocker: Any) -> Iterator[DatabaseWrapper]:
    """The URL names the replica first. No answer is late, however slow this machine is."""
    url = f"{postgres.url_of(pair.replica.port, pair.primary.port)}&answer_seconds=60"
    given = connections[DEFAULT_DB_ALIAS].settings_dict | database(url)
    with django_db_blocker.unblock(), closing(DatabaseWrapper(given)) as made:
        yield made


def say(own: DatabaseWrapper, statement: str) -> Any:
    with own.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchone() if cursor.description else None


def one_more(own: DatabaseWrapper) -> bool:
    """Insert a row; whether the commit was acknowledged."""
    try:
        say(own, "INSERT INTO done VALUES ('late')")
    except OperationalError:
        return False
    return True


def test_RF_3_of_two_servers_the_one_that_writes_is_found(
    ours: DatabaseWrapper, pair: Pair
) -> None:
    assert say(ours, "SELECT inet_server_port()") == (pair.primary.port,)


def test_RF_3_read_only_database_server_is_not_used(pair: Pair, django_db_blocker: Any) -> None:
    """After a failover a name may lead to a read-only server with stale data: it is not used."""
    given = connections[DEFAULT_DB_ALIAS].settings_dict | database(
        postgres.url_of(pair.replica.port)
    )
    with (
        django_db_blocker.unblock(),
        closing(DatabaseWrapper(given)) as made,
        pytest.raises(OperationalError, match="read-only"),
    ):
        say(made, "SELECT 1")


def test_RF_3_write_the_replica_did_not_take_is_not_a_success(
    ours: DatabaseWrapper, pair: Pair
) -> None:
    say(ours, "INSERT INTO done VALUES ('before')")
    ours.connection.answer_seconds = 1
    pair.replica.freeze()
    try:
        with pytest.raises(OperationalError, match="no answer within 1 s"):
            say(ours, "INSERT INTO done VALUES ('not known')")
    finally:
        pair.replica.thaw()
    ours.close()
    say(ours, "INSERT INTO done VALUES ('after')")


def test_RF_3_the_one_that_took_over_is_found_with_all_that_was_done(
    ours: DatabaseWrapper, pair: Pair
) -> None:
    pair.primary.kill()
    # Its processes notice its death one by one; until then they work as before.
    done = 0
    while one_more(ours):
        done += 1
    pair.replica.promote()
    ours.close()
    assert say(ours, "SELECT inet_server_port()") == (pair.replica.port,)
    [count] = say(ours, "SELECT count(*) FROM done WHERE what = 'late'")
    assert done <= count <= done + 1
    assert say(ours, "SELECT count(*) FROM done WHERE what IN ('before', 'after')") == (2,)
    say(ours, "INSERT INTO done VALUES ('there')")
