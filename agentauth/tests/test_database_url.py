"""The database's address by URL: one host, or a primary and its replicas."""

import pytest

from agentauth.settings import database


@pytest.mark.parametrize(
    ("places", "hosts", "ports"),
    [
        ("one:5433,two:5434", "one,two", "5433,5434"),
        ("one,two:5434,10.0.0.3", "one,two,10.0.0.3", "5432,5434,5432"),
    ],
)
def test_RF_3_a_url_of_several_hosts_names_each_with_its_port(
    places: str, hosts: str, ports: str
) -> None:
    config = database(f"postgres://role:a%2Cb@{places}/name?sslmode=verify-full")
    assert (config["HOST"], config["PORT"]) == (hosts, ports)
    assert (config["USER"], config["PASSWORD"], config["NAME"]) == ("role", "a,b", "name")
    assert config["OPTIONS"]["sslmode"] == "verify-full"
    assert config["OPTIONS"]["target_session_attrs"] == "read-write"


def test_RF_3_one_host_must_be_the_one_that_writes_too() -> None:
    config = database("postgres://role:a,b@one:5433/name")
    assert (config["HOST"], config["PORT"], config["PASSWORD"]) == ("one", 5433, "a,b")
    assert config["OPTIONS"]["target_session_attrs"] == "read-write"
    assert "target_session_attrs" not in database("sqlite:///somewhere")["OPTIONS"]


def test_RF_3_the_one_that_writes_may_be_asked_for_by_either_word() -> None:
    config = database("postgres://role@one,two/name?target_session_attrs=primary")
    assert config["OPTIONS"]["target_session_attrs"] == "primary"


@pytest.mark.parametrize(
    "url",
    [
        "postgres://role:secret@one:5432,/name",
        "postgres://role:secret@,two/name",
        "postgres://role:secret@one,two:none/name",
        "postgres://role:secret@one,two:0/name",
        "postgres://role:secret@one,two:65536/name",
        "postgres://role:secret@one:none/name",
        "nothing://role:secret@one,two/name",
        "postgres://role:secret@one,two/name?target_session_attrs=any",
        "postgres://role:secret@one,two/name?target_session_attrs=prefer-standby",
        "postgres://role:secret@one/name?target_session_attrs=any",
        "postgres://role:secret@one,two/name?target_session_attrs=read-write&target_session_attrs=any",
        "postgres://role:secret@/name?host=one,two&target_session_attrs=standby",
    ],
)
def test_RF_3_a_url_that_is_nonsense_or_leads_to_a_replica_stops_the_start(url: str) -> None:
    with pytest.raises(SystemExit, match=r"agentauth\.E019") as refused:
        database(url)
    assert "secret" not in str(refused.value)
