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


def on_call(emails: str) -> dict[str, str]:
    """A service whose requests go to the first person, who is away, for the second; then the third.

    `emails` are theirs, separated by spaces. Returns the service's slug.
    """
    from registry.models import Human
    from registry.services import approvers as services
    from tests.browser.stage import Stage

    first, second, third = (Human.objects.get(email=each) for each in emails.split())
    stage = Stage(first.email)
    more: dict[str, Any] = {"actor": stage.alice, "now": stage.now}
    last = services.create_group(name="Night shift", wait_minutes=30, next_group=None, **more)
    group = services.create_group(name="Day shift", wait_minutes=30, next_group=last, **more)
    services.add_member(group=last, human=third, **more)
    services.add_member(group=group, human=first, **more)
    services.set_absence(
        human=first, starts_at=stage.now - MINUTE, ends_at=stage.now + DAY, deputy=second, **more
    )
    desk = stage.service_provider("Help Desk", "https://desk.example")
    services.create_rule(name="Help Desk", group=group, service_provider=desk, **more)
    return {"service": desk.slug}


def end_rules(email: str) -> dict[str, str]:
    """No request is routed any more; `email` is an administrator's."""
    from registry.models import ApprovalRule
    from registry.services.approvers import end_rule
    from tests.browser.stage import Stage

    stage = Stage(email)
    for rule in ApprovalRule.objects.filter(ended_at=None):
        end_rule(rule=rule, actor=stage.alice, now=stage.now)
    return {}


def half_an_hour_passes(grant_id: str) -> dict[str, str]:
    """The request has waited longer than its group may take."""
    from registry.models import Grant

    row = Grant.objects.get(pk=grant_id)
    Grant.objects.filter(pk=row.pk).update(created_at=row.created_at - 31 * MINUTE)
    return {}


ACTS = {
    "approvers": approvers,
    "on_call": on_call,
    "end_rules": end_rules,
    "half_an_hour_passes": half_an_hour_passes,
}
