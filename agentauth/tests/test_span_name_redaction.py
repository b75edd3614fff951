"""No value in a statement or command can become part of a span's name."""

import pytest

from agentauth.observability.span_name_redaction import (
    command_name,
    pipeline_name,
    statement_name,
)


@pytest.mark.parametrize(
    ("sql", "name"),
    [
        ('SELECT "registry_grant"."id" FROM "registry_grant" WHERE "id" = %s', "registry_grant"),
        ("UPDATE registry_human SET name = %s", "registry_human"),
        ("SELECT 1", ""),
        ("SELECT * FROM alice", ""),
        ("SELECT 'x' FROM \"secret_of_a_person\" JOIN registry_agent a", "registry_agent"),
        ("SELECT 'FROM registry_alice'", ""),
    ],
)
def test_span_names_only_our_own_tables(sql: str, name: str) -> None:
    assert statement_name(sql) == (sql.partition(" ")[0], name)


def test_cte_is_named_by_the_table_it_changes() -> None:
    sql = "WITH act AS (INSERT INTO registry_token (jti) VALUES (%s)) INSERT INTO audit_event"
    assert statement_name(sql) == ("INSERT", "registry_token")
    assert statement_name("WITH x AS (SELECT 1) SELECT * FROM kms_key") == ("WITH", "kms_key")


@pytest.mark.parametrize("sql", ["'a secret'", "hunter2 x", "alice", "-- SELECT", "", "SELECTED"])
def test_unrecognised_statement_gets_a_constant_name(sql: str) -> None:
    assert statement_name(sql) == ("SQL", "")


def test_command_that_we_use_is_named() -> None:
    assert command_name("XLEN") == command_name(b"XLEN") == "XLEN"
    assert command_name("SCRIPT LOAD") == "SCRIPT LOAD"


@pytest.mark.parametrize(
    "argument", ["ALICE", "alice", "A SECRET", "A1", b"\xff", "GET KEY VALUE", "", 7]
)
def test_unrecognised_command_gets_a_constant_name(argument: object) -> None:
    assert command_name(argument) == "command"


def test_pipeline_name_lists_at_most_eight_statements() -> None:
    name = pipeline_name(("SELECT 1",) * 9)
    assert name == "; ".join(["SELECT"] * 8) + " …"
