"""How much of a grant's limits is used, for the pages."""

from datetime import datetime

from agentauth.protocol.envelope import Ledger, Limits, limits_left, parse_envelope
from registry.models import Grant
from verifier.models import GrantLedger


def use_of_grant(grant: Grant, now: datetime) -> Limits:
    """What is left of each limit of `grant` at `now`; of a grant that is not approved, of what was asked for."""
    asked = grant.requested_envelope if grant.envelope is None else grant.envelope
    row = GrantLedger.objects.filter(grant=grant).first()
    return limits_left(parse_envelope(asked), Ledger() if row is None else ledger_of(row), now)


def ledger_of(row: GrantLedger) -> Ledger:
    """The counters of a row as the protocol's value."""
    spent = {key: (str(start), int(minor)) for key, (start, minor) in row.spent.items()}
    return Ledger(tat_us=row.tat_us, uses=row.uses, spent=spent)
