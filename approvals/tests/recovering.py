"""Account recoveries for tests: begun, ready, and used in a new browser."""

from datetime import datetime, timedelta

from approvals.models import Recovery
from approvals.services.recovery import create_recovery_link, start_recovery
from approvals.services.setup_and_sign_in import SetupLink
from approvals.tests.authenticator import Authenticator
from approvals.tests.cast import ORIGIN, Person, browser
from registry.models import Human
from registry.tests.cast import TESTER

DAY = timedelta(hours=24)


def begun(
    human: Human, now: datetime, *, admin: Human | None = None, case: str = "lost"
) -> Recovery:
    return start_recovery(human=human, case=case, admin=admin, actor=TESTER, now=now)


def link_of(row: Recovery, now: datetime) -> SetupLink:
    return create_recovery_link(recovery=row, admin=None, actor=TESTER, now=now)


def ready_link(human: Human, now: datetime) -> SetupLink:
    """The link of a recovery that an operator began a day ago."""
    return link_of(begun(human, now - DAY), now)


def recovered(link: SetupLink, device: Authenticator | None = None) -> Person:
    """A new browser opens the link and creates a passkey."""
    person = Person(client=browser(), device=device or Authenticator())
    done = person.set_up(link.url, name="", email="")
    assert done.status_code == 200, done.content
    return person


def path_of(link: SetupLink) -> str:
    return link.url.removeprefix(ORIGIN)
