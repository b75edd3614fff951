"""Two verifier hosts and a partition between them: no proof passes twice, no limit is exceeded.

The hosts are network namespaces (`two_hosts.py`). `python -m tests.faults.chaos two-hosts` writes
the same rehearsal into chaos/CHAOS.md.
"""

from collections.abc import Iterator

import pytest

from tests.faults.chaos.servers import folder
from tests.faults.outcome_checks import CUT_OFF_SECONDS
from tests.faults.two_hosts import CAP, PARTITION_SECONDS, Rehearsal, hosts, rehearse

pytestmark = [
    pytest.mark.faults,
    pytest.mark.long,
    pytest.mark.netns,
    pytest.mark.postgres,
    pytest.mark.redis,
]


@pytest.fixture(scope="module")
def seen() -> Iterator[Rehearsal]:
    with folder("agentauth-hosts-") as directory, hosts(directory) as held:
        made = rehearse(held, seconds=PARTITION_SECONDS)
        print(*made.lines(), sep="\n")
        yield made


def test_a_proof_spent_at_one_host_is_refused_at_the_other(seen: Rehearsal) -> None:
    assert {each.where for each in seen.replays} == {"one", "two"}
    assert [each for each in seen.replays if each.yes] == []
    assert seen.accepted_twice == []


def test_a_limit_holds_in_sum_over_both_hosts(seen: Rehearsal) -> None:
    assert set(seen.payments) == {"one", "two"}
    assert seen.payments.total() <= CAP


def test_the_cut_off_host_answers_503_and_the_other_continues(seen: Rehearsal) -> None:
    assert seen.last_yes("two") <= CUT_OFF_SECONDS
    late = seen.between("two", seen.cut + CUT_OFF_SECONDS, seen.healed)
    assert {each.status for each in late} == {503}
    # Whatever counts is in PostgreSQL, so it ends at once.
    paid = [each for each in seen.between("two", seen.cut, seen.healed) if each.kind == "pay"]
    assert paid
    assert [each for each in paid if each.yes] == []
    assert seen.left_good < PARTITION_SECONDS / 2


def test_both_hosts_are_well_after_the_partition(seen: Rehearsal) -> None:
    assert max(seen.back.values()) < 60
    assert seen.verified == "whole"
