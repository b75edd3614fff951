"""Which decisions use up a human's confirmation."""

from dataclasses import dataclass
from datetime import UTC, datetime

import pytest

from agentauth.protocol.behavioural_envelope import Envelope, Ledger
from agentauth.protocol.capability import Action, Capability
from agentauth.protocol.decision_rules import Allow, Snapshot, decide
from agentauth.protocol.money import Money


@dataclass(frozen=True)
class Call:
    """A question without a service provider."""

    action: Action | None
    dry_run: bool = False
    action_digest: bytes = b""
    now: datetime = datetime(2027, 1, 10, 12, tzinfo=UTC)


def euros(value: str) -> Money:
    return Money.parse({"value": value, "currency": "EUR"})


PAY = Action("transact", "payments", amount=euros("20.00"))


@pytest.mark.parametrize(
    ("call", "threshold", "uses"),
    [
        (Call(PAY), euros("19.99"), True),
        (Call(PAY, dry_run=True), euros("19.99"), False),
        (Call(PAY), euros("20.00"), False),
        (Call(PAY), None, False),
        (Call(None), euros("19.99"), False),
        # What cannot be compared counts as above the threshold.
        (Call(PAY), Money.parse({"value": "99.00", "currency": "USD"}), True),
    ],
)
def test_only_a_payment_above_the_threshold_uses_up_the_yes(
    call: Call, threshold: Money | None, uses: bool
) -> None:
    snapshot = Snapshot(
        refusal=None,
        capabilities=(Capability("transact", "payments", max_amount=euros("50.00")),),
        envelope=Envelope(confirm_above=threshold),
        operation=None,
        confirmation="confirmed",
        human_online=False,
    )
    outcome = decide(call, snapshot, Ledger())
    assert isinstance(outcome, Allow)
    assert outcome.uses_confirmation is uses
