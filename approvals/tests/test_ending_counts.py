"""How much ends with one press, as the page says it (SA-8)."""

from dataclasses import replace

from approvals.services.cascade_previews import Cascade
from approvals.services.destructive_actions import Preview

LOSS = Cascade("1", "x", "x", (), ())


def counted(kind: str, *ends: Cascade) -> list[str]:
    return Preview(kind, ends, (), "x").counts


def test_SA_8_of_one_row_that_takes_nothing_with_it_nothing_is_counted() -> None:
    assert counted("agent", LOSS) == []
    assert counted("grant", replace(LOSS, grants=1)) == []


def test_SA_8_rows_grants_tokens_and_requests_are_counted() -> None:
    one, two = replace(LOSS, grants=1, tokens=1, waiting=1), replace(LOSS, grants=2, waiting=2)
    assert counted("agent", one) == [
        "1 grant",
        "1 access token that is valid now",
        "1 request that waits for an answer",
    ]
    assert counted("agent", one, two) == [
        "2 agents",
        "3 grants",
        "1 access token that is valid now",
        "3 requests that wait for an answer",
    ]
    assert counted("grant", one, one)[0] == "2 grants"
