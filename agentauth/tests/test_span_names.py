"""A span's name never has a value in it, whatever a statement or a caller holds."""

import pytest

from agentauth.observability.span_names import (
    command_name,
    pipeline_name,
    read_traceparent,
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
def test_a_statement_is_named_by_our_tables_alone(sql: str, name: str) -> None:
    assert statement_name(sql) == (sql.partition(" ")[0], name)


def test_a_statement_with_parts_is_named_by_what_it_changes() -> None:
    sql = "WITH act AS (INSERT INTO registry_token (jti) VALUES (%s)) INSERT INTO audit_event"
    assert statement_name(sql) == ("INSERT", "registry_token")
    assert statement_name("WITH x AS (SELECT 1) SELECT * FROM kms_key") == ("WITH", "kms_key")


def test_what_is_no_statement_or_command_has_a_constant_name() -> None:
    assert statement_name("'a secret'") == ("SQL", "")
    assert command_name("XADD") == command_name(b"XADD") == "XADD"
    assert command_name("CONFIG GET") == "CONFIG GET"
    for secret in ("alice", "A1", b"\xff", "GET KEY VALUE", "", 7):
        assert command_name(secret) == "command"


def test_statements_sent_together_are_named_up_to_eight() -> None:
    name = pipeline_name(("SELECT 1",) * 9)
    assert name == "; ".join(["SELECT"] * 8) + " …"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
        "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\n",
    ],
)
def test_what_is_not_exactly_a_traceparent_links_to_nothing(text: str) -> None:
    assert read_traceparent(text) is None


def test_a_traceparent_is_read_as_two_ids() -> None:
    sent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"
    assert read_traceparent(sent) == (0x4BF92F3577B34DA6A3CE929D0E0E4736, 0x00F067AA0BA902B7)
