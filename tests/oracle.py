"""The oracle after a fault: compares what clients were told with rows, counters, events and the
log.

`python -m tests.oracle JSON` (`-`: from standard input) runs on the database of its environment,
prints the list of broken invariants and exits 1 if there are any. JSON: {"tokens": [jti…],
"decisions": [decision_id…], "revoked": [grant_id…], "approved": [grant_id…]} as acknowledged to
clients.
"""

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "agentauth.settings")


def find_violations(log: dict[str, list[str]]) -> Iterator[str]:
    """Each broken invariant as one sentence."""
    from approvals.models import Receipt
    from audit.models import Event
    from audit.services import seal_audit
    from audit.verify.verification import verify_log
    from registry.models import Grant, Token

    issued = set(
        Event.objects.filter(kind="registry.token.issued").values_list("token_jti", flat=True)
    )
    rows = set(Token.objects.values_list("jti", flat=True))
    yield from (f"token row without event: {jti}" for jti in rows - issued)
    yield from (f"issued event without token row: {jti}" for jti in issued - rows)
    yield from (
        f"a token was delivered that is not on record: {jti}" for jti in set(log["tokens"]) - rows
    )

    allowed = list(Event.objects.filter(kind="verifier.decision.allowed"))
    decided = {str(event.pk) for event in allowed}
    yield from (
        f"an acknowledged decision is not on record: {lost}"
        for lost in set(log["decisions"]) - decided
    )
    yield from counters(allowed)
    yield from confirmations(allowed)

    revoked = {
        str(pk) for pk in Grant.objects.filter(status="revoked").values_list("pk", flat=True)
    }
    yield from (
        f"an acknowledged revocation is lost: {lost}" for lost in set(log["revoked"]) - revoked
    )
    ended = {
        str(pk)
        for pk in Event.objects.filter(kind="registry.grant.revoked").values_list(
            "grant_id", flat=True
        )
    }
    yield from (f"revoked without its event, or the reverse: {odd}" for odd in revoked ^ ended)

    approved = {
        str(pk) for pk in Grant.objects.exclude(decided_at=None).values_list("pk", flat=True)
    }
    yield from (
        f"an acknowledged approval is lost: {lost}" for lost in set(log["approved"]) - approved
    )
    signed = {
        str(pk) for pk in Receipt.objects.filter(kind="approval").values_list("subject", flat=True)
    }
    yield from (f"a receipt without its approval: {odd}" for odd in signed - approved)
    # Grants seeded by tests/seed.py have no receipt; those approved on the page must have one.
    yield from (f"an approval without its receipt: {odd}" for odd in set(log["approved"]) - signed)

    seal_audit(now=datetime.now(UTC))
    verdict = verify_log()
    if not verdict.ok:
        yield f"the log does not verify: {verdict}"


def counters(allowed: list[Any]) -> Iterator[str]:
    """Uses and spending in each ledger equal the sum of the events, within the grant's limits."""
    from agentauth.protocol.behavioural_envelope import parse_envelope
    from verifier.models import GrantLedger

    by_grant: dict[Any, list[Any]] = {}
    for event in allowed:
        if event.data["action"]:
            by_grant.setdefault(event.grant_id, []).append(event)
    for ledger in GrantLedger.objects.select_related("grant"):
        own = by_grant.pop(ledger.grant_id, [])
        if ledger.uses != len(own):
            yield f"ledger of {ledger.grant_id}: {ledger.uses} uses, {len(own)} events"
        envelope = parse_envelope(ledger.grant.envelope)
        if envelope.max_uses is not None and ledger.uses > envelope.max_uses:
            yield f"ledger of {ledger.grant_id}: {ledger.uses} uses of {envelope.max_uses}"
        yield from spending(
            ledger, own, {each.key: each.ceiling.minor for each in envelope.budgets}
        )
        yield from done_twice(own)
    yield from (f"a use without a ledger: {grant_id}" for grant_id in by_grant)


def spending(ledger: Any, own: list[Any], ceilings: dict[str, int]) -> Iterator[str]:
    """Each budget counts the sum of its period's debits, and of the previous period's.

    That of the running period is not above the limit.
    """
    from agentauth.protocol.hours_and_periods import period_start
    from agentauth.protocol.money import Money

    debits = [event for event in own if "amount" in event.data["action"]]
    for name, (start, minor) in ledger.spent.items():
        _, named, zone = name.split("/", 2)
        period = named.removesuffix("-before")
        counted = [event for event in debits if period_start(period, zone, event.at) == start]
        total = sum(Money.parse(event.data["action"]["amount"]).minor for event in counted)
        if minor != total:
            yield f"ledger of {ledger.grant_id}: {minor} spent of {name}, events say {total}"
        if name in ceilings and minor > ceilings[name]:
            yield (
                f"ledger of {ledger.grant_id}: {minor} spent of {name}, which ends at "
                f"{ceilings[name]}"
            )


def confirmations(allowed: list[Any]) -> Iterator[str]:
    """A confirmation is used once, by one decision that names it."""
    from verifier.models import Confirmation

    used = Counter(
        event.data["confirmation_id"] for event in allowed if "confirmation_id" in event.data
    )
    consumed = {
        str(pk)
        for pk in Confirmation.objects.filter(status="consumed").values_list("pk", flat=True)
    }
    yield from (f"a yes of a human used {n} times: {yes}" for yes, n in used.items() if n > 1)
    yield from (
        f"a yes that is used up without its decision, or the reverse: {odd}"
        for odd in consumed ^ {*used}
    )


def done_twice(own: list[Any]) -> Iterator[str]:
    """A named operation is in the log once; each repetition is an event of another kind."""
    names = [_name_of(event) for event in own]
    yield from (
        f"done {n} times: {name}"
        for name, n in Counter(names).items()
        if name is not None and n > 1
    )


def _name_of(event: Any) -> str | None:
    details = event.openings.filter(member="details").values_list("value", flat=True).first() or {}
    return details.get("idempotency_key_sha256")


if __name__ == "__main__":
    django.setup()
    empty: dict[str, list[str]] = {"tokens": [], "decisions": [], "revoked": [], "approved": []}
    found = list(
        find_violations(empty | json.loads(sys.stdin.read() if sys.argv[1] == "-" else sys.argv[1]))
    )
    print("\n".join(found) or "every invariant holds")
    sys.exit(bool(found))
