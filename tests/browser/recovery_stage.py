"""Sets up the screenshots of account recoveries: begun, ready, and of a suspended user."""

from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

DAY = timedelta(days=1)


def recoveries(email: str) -> dict[str, str]:
    """Begin recoveries of three users who appear in no other scene; `email` is the administrator's.

    Erin is ordinary; the name and address of the other two try to break a page.
    """
    from approvals.services.recovery import create_recovery_link, start_recovery
    from audit.services import Actor
    from registry.models import Human
    from registry.services.humans import create_human, suspend_human
    from tests.browser.hostile_stage import LONG_ADDRESS, NAME, PERSON

    now, system = datetime.now(UTC), Actor("system", "stage")
    admin = Human.objects.get(email=email)
    people = {
        name: create_human(email=address, name=called, actor=system, now=now)
        for name, called, address in (
            ("Erin", "Erin Sørensen-Oyelaran", "erin@example.org"),
            ("Finn", NAME, LONG_ADDRESS),
            ("Gwen", PERSON, "gwen@example.org"),
        )
    }
    suspend_human(human=people["Gwen"], actor=system, now=now)
    start_recovery(human=people["Gwen"], case="stolen", admin=None, actor=system, now=now - DAY / 3)
    ready = start_recovery(
        human=people["Finn"], case="lost", admin=admin, actor=system, now=now - DAY - DAY / 24
    )
    link = create_recovery_link(recovery=ready, admin=None, actor=system, now=now)
    paths = {
        f"recovery-{name.lower()}": f"/recoveries/{human.pk}/" for name, human in people.items()
    }
    bob = Human.objects.get(email="bob@example.org")
    return paths | {
        "recover-link": urlsplit(link.url).path,
        "recovery-bob": f"/recoveries/{bob.pk}/",
    }


def ready(email: str) -> dict[str, str]:
    """End the waiting time of this user's recovery."""
    from approvals.models import Recovery
    from kms.tests.sealing import change

    past = datetime.now(UTC) - timedelta(seconds=1)
    mine = Recovery.objects.filter(human__email=email, used_at=None, cancelled_at=None)
    assert change(mine, ready_at=past)
    return {}


ACTS = {"recoveries": recoveries, "ready": ready}
