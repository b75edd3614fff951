"""Every refusal that the API describes has a sentence on the activity page."""

from agentauth.openapi.verify_schemas import REASONS
from approvals.views.decision_event_sentences import REFUSALS


def test_every_reason_of_the_protocol_has_its_sentence() -> None:
    known = {(error, reason) for error, reasons in REASONS.items() for reason in reasons or (None,)}
    apart = {("idempotency_mismatch", None), ("temporarily_unavailable", "withheld")}
    assert set(REFUSALS) == known | apart
    assert len({str(why) for why in REFUSALS.values()}) == len(REFUSALS)
