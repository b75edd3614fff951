"""The oracle after a fault: compares what clients were told with rows, counters, events and the log.

`python -m tests.oracle JSON` runs against the database of its environment, prints the list of broken invariants and
exits 1 if there are any. JSON: {"tokens": [jti…], "decisions": [decision_id…], "revoked": [grant_id…],
"approved": [grant_id…]} as acknowledged to clients.
"""

import json
import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "agentauth.settings")


def broken(log: dict[str, list[str]]) -> Iterator[str]:
    """Each broken invariant as one sentence."""
    from approvals.models import Receipt
    from audit.models import Event
    from audit.services import seal_audit
    from audit.verification import verify_log
    from registry.models import Grant, Token

    issued = set(Event.objects.filter(kind="registry.token.issued").values_list("token_jti", flat=True))
    rows = set(Token.objects.values_list("jti", flat=True))
    yield from (f"token row without event: {jti}" for jti in rows - issued)
    yield from (f"issued event without token row: {jti}" for jti in issued - rows)
    yield from (f"a token was delivered that is not on record: {jti}" for jti in set(log["tokens"]) - rows)

    allowed = list(Event.objects.filter(kind="verifier.decision.allowed"))
    decided = {str(event.pk) for event in allowed}
    yield from (
        f"an acknowledged decision is not on record: {lost}" for lost in set(log["decisions"]) - decided
    )
    yield from counters(allowed)

    revoked = {str(pk) for pk in Grant.objects.filter(status="revoked").values_list("pk", flat=True)}
    yield from (f"an acknowledged revocation is lost: {lost}" for lost in set(log["revoked"]) - revoked)
    ended = {
        str(pk)
        for pk in Event.objects.filter(kind="registry.grant.revoked").values_list("grant_id", flat=True)
    }
    yield from (f"revoked without its event, or the reverse: {odd}" for odd in revoked ^ ended)

    approved = {str(pk) for pk in Grant.objects.exclude(decided_at=None).values_list("pk", flat=True)}
    yield from (f"an acknowledged approval is lost: {lost}" for lost in set(log["approved"]) - approved)
    signed = {str(pk) for pk in Receipt.objects.filter(kind="approval").values_list("subject", flat=True)}
    yield from (f"a receipt without its approval: {odd}" for odd in signed - approved)
    # Grants seeded by tests/seed.py have no receipt; those decided on the page (acknowledged ones) must.
    yield from (f"an approval without its receipt: {odd}" for odd in set(log["approved"]) - signed)

    seal_audit(now=datetime.now(UTC))
    verdict = verify_log()
    if not verdict.ok:
        yield f"the log does not verify: {verdict}"


def counters(allowed: list[Any]) -> Iterator[str]:
    """Uses and spending in each ledger equal what the events add up to."""
    from agentauth.protocol.money import Money
    from verifier.models import GrantLedger

    for ledger in GrantLedger.objects.all():
        own = [event for event in allowed if event.grant_id == ledger.grant_id and event.data["action"]]
        if ledger.uses != len(own):
            yield f"ledger of {ledger.grant_id}: {ledger.uses} uses, {len(own)} events"
        amounts = [event.data["action"]["amount"] for event in own if "amount" in event.data["action"]]
        total = sum(Money.parse(amount).minor for amount in amounts)
        for name, (_, minor) in ledger.spent.items():
            if "/total/" in name and minor != total:
                yield f"ledger of {ledger.grant_id}: {minor} spent, events say {total}"


if __name__ == "__main__":
    django.setup()
    empty: dict[str, list[str]] = {"tokens": [], "decisions": [], "revoked": [], "approved": []}
    found = list(broken(empty | json.loads(sys.argv[1])))
    print("\n".join(found) or "every invariant holds")
    sys.exit(bool(found))
