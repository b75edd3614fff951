"""Sets up the screenshots of approvers: a group, a rule, absences, and a request of each kind."""

from datetime import timedelta
from typing import Any

from tests.browser.hostile_stage import NAME

DAY, MINUTE = timedelta(days=1), timedelta(minutes=1)


def approvers(email: str) -> dict[str, str]:
    """Alice and Carol decide for each other on payments of more than €50 at one service."""
    from agentauth.protocol.money import Money
    from registry.services import approvers as services
    from registry.services.humans import create_human
    from tests.browser.stage import PAY, SPENDING, Stage

    stage = Stage(email)
    more: dict[str, Any] = {"actor": stage.alice, "now": stage.now - 2 * DAY}
    carol = create_human(email="carol@example.org", name="Carol Finance", **more)
    last = services.create_group(name=NAME, wait_minutes=15, next_group=None, **more)
    group = services.create_group(name="Finance", wait_minutes=30, next_group=last, **more)
    for human in (stage.human, carol):
        services.add_member(group=group, human=human, **more)
    bank = stage.service_provider("Ledger Bank", "https://ledger.example")
    services.create_rule(
        name="Payments over €50",
        group=group,
        service_provider=bank,
        above=Money.of("50.00", "EUR"),
        **more,
    )
    for human, deputy in ((carol, None), (stage.human, carol)):
        start = stage.now + DAY
        services.set_absence(
            human=human, starts_at=start, ends_at=start + 3 * DAY, deputy=deputy, **more
        )
    own = stage.agent("Invoice Payer", "Pays invoices.", DAY)
    asked = stage.request(own, bank, MINUTE, [PAY], envelope=SPENDING)
    hers = Stage(carol.email)
    other = hers.agent("Carol's Payer", "Pays invoices.", DAY)
    routed = hers.request(other, bank, MINUTE, [PAY], envelope=SPENDING)
    return {
        "approval-others-decide": f"/approvals/{asked.pk}/",
        "approval-for-another": f"/approvals/{routed.pk}/",
    }


ACTS = {"approvers": approvers}
