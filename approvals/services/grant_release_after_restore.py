"""Release grants after a restore: an owner signs for those that are proved unused.

Unused means that neither the lost log nor this one has, since the backup, an event that could have
used, ended or changed the grant, its agent, its human or its service provider
(`grants_unused_since_backup.HARMLESS` lists the kinds that do not count).
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import transaction
from django.utils.translation import gettext as _

from agentauth.protocol.encoding import canonical_json
from agentauth.protocol.errors import ConfirmationRequiredError, InvalidStateError
from agentauth.protocol.grant_release_statement import release_statement
from agentauth.protocol.passkey_statements import MAX_RELEASED
from approvals import consent_texts
from approvals.models import Challenge, Receipt
from approvals.services.challenges import Ceremony, begin, use_second_step
from approvals.services.grants_unused_since_backup import prove_lost_log, read_present
from approvals.services.page_snapshot_token import Page, check_drawn
from approvals.services.passkey_signature_flow import accept_signature, ask_signature
from approvals.services.statement_builders import signing
from audit import kinds
from audit.checkpoints.signed_checkpoint_reading import Anchor
from audit.models import LogBreak
from audit.services import Actor, record
from registry.models import Grant, Human
from registry.refusal_translation import refusal_text
from registry.services.grants import release_grant


@dataclass(frozen=True, slots=True)
class Finding:
    """A suspended grant and why it cannot be released. `refusal` is empty if it can."""

    grant: Grant
    refusal: str


@dataclass(frozen=True, slots=True)
class Findings:
    """Each suspended grant, and the checkpoint that ends the lost log.

    If the checkpoint is None, `problem` says why.
    """

    grants: list[Finding]
    anchor: Anchor | None
    problem: str

    @property
    def releasable(self) -> list[Finding]:
        """Those that may be released."""
        return [each for each in self.grants if not each.refusal]

    @property
    def refused(self) -> list[Finding]:
        """Those that may not."""
        return [each for each in self.grants if each.refusal]


def judge_suspended_grants(row: LogBreak, *, now: datetime) -> Findings:
    """Say for each grant that the restore suspended whether it may be released.

    Reads the lost log from the audit store, and this database's log since the break. Raises
    TemporarilyUnavailableError if the store does not answer.
    """
    grants = list(_suspended_grants())
    try:
        anchor, lost = prove_lost_log(row, now=now)
    except InvalidStateError as error:
        return Findings(
            [Finding(each, refusal_text(error)) for each in grants], None, refusal_text(error)
        )
    present = read_present(row)

    def refusal(grant: Grant) -> str:
        if event := lost.event_against(grant):
            return _("The lost log has this event after the backup: %(event)s.") % {"event": event}
        return present.refusal(grant, now)

    return Findings([Finding(each, refusal(each)) for each in grants], anchor, "")


def choosing_page(row: LogBreak, grants: Iterable[Grant]) -> Page:
    """What the page for choosing grants shows: each grant by its names and version."""
    shown = {f"grant.{each.pk}": _shown_facts(each) for each in grants}
    return Page(Challenge.Purpose.SECOND_STEP, row.name, shown)


def release_page(row: LogBreak, grants: Sequence[Grant], size: int) -> Page:
    """What the page to sign shows: these grants, and the text, with the size of the proven log."""
    names = [(str(each.pk), each.service_provider.name) for each in grants]
    shown = {f"grant.{each.pk}": _shown_facts(each) for each in grants}
    return Page(
        Challenge.Purpose.RELEASE,
        row.name,
        shown | {"text": consent_texts.release_text(grants=names, size=size)},
    )


def take_second_step(
    *,
    row: LogBreak,
    human: Human,
    session_key: str,
    ids: Sequence[str],
    drawn: str,
    actor: Actor,
    now: datetime,
) -> tuple[list[Grant], Page]:
    """Record that the owner chose these grants on the page and went on.

    Valid for CHALLENGE_LIFE. Returns the grants and the page on which they are released. Raises
    InvalidStateError if one of them is not proved unused; TemporarilyUnavailableError if the audit
    store does not answer; and what `check_drawn` raises.
    """
    anchor, grants = _provable(row, ids, now)
    # The page showed all of them; the chosen ones must look as they did.
    check_drawn(choosing_page(row, grants), drawn)
    with transaction.atomic():
        begin(_second(row, human, session_key), now=now, challenge=_digest(grants))
        data = {"log": row.name, "grants": [str(each.pk) for each in grants]}
        record(kind=kinds.SECOND_STEP_TAKEN, actor=actor, at=now, data=data)
    return grants, release_page(row, grants, anchor.size)


def begin_release(
    *, row: LogBreak, human: Human, session_key: str, ids: Sequence[str], drawn: str, now: datetime
) -> dict[str, Any]:
    """Make the statement that releases these grants and ask for its signature.

    Raises InvalidStateError if one of them is not proved unused; ConfirmationRequiredError if the
    second step was not taken for exactly these; TemporarilyUnavailableError if the audit store does
    not answer; and what `check_drawn` raises.
    """
    anchor, grants = _provable(row, ids, now)
    page = release_page(row, grants, anchor.size)
    # Before the second step is used up: a page that has changed must not cost it.
    check_drawn(page, drawn)
    if not use_second_step(_second(row, human, session_key), _digest(grants), now=now):
        raise ConfirmationRequiredError("Check these grants once more, then continue.")
    text = page.shown["text"]
    statement = release_statement(
        signing(agent=None, human=human, consent_text=text, now=now),
        name=row.name,
        size=anchor.size,
        root=anchor.root,
        grants=[(str(each.pk), each.version) for each in grants],
    )
    return ask_signature(
        _ceremony(row, human, session_key),
        human=human,
        statement=statement,
        consent_text=text,
        page=page,
        drawn=drawn,
        now=now,
    )


def finish_release(
    *,
    row: LogBreak,
    human: Human,
    session_key: str,
    credential: object,
    actor: Actor,
    now: datetime,
) -> Receipt:
    """Release the grants of the signed statement, all of them or none.

    Only this database's log is checked again: what was lost was proved for the statement and cannot
    change. Raises what `accept_signature` raises: GrantChangedError if a grant changed since,
    InvalidStateError if this log has an event against one.
    """

    def chosen(challenge: Challenge) -> list[Grant]:
        # In id order: `release_grant` locks them one by one, and every caller locks in that order.
        return list(
            _suspended_grants().filter(
                pk__in=[each["id"] for each in challenge.statement["grants"]]
            )
        )

    def act(challenge: Challenge) -> None:
        body = challenge.statement
        proof = {"log": row.name, "proof_size": body["size"], "proof_root": body["root"]}
        # Read the grants before the log: a later change is then in the log, or `release_grant`
        # finds another version.
        grants = chosen(challenge)
        versions = {each["id"]: each["version"] for each in body["grants"]}
        present = read_present(row)
        if {str(each.pk): each.version for each in grants} != versions:
            raise InvalidStateError("One of these grants has changed. Check them again.")
        for grant in grants:
            if refusal := present.refusal(grant, now):
                raise InvalidStateError(refusal)
            release_grant(grant=grant, actor=actor, now=now, data=proof)

    return accept_signature(
        _ceremony(row, human, session_key),
        human=human,
        credential=credential,
        now=now,
        page=lambda challenge: release_page(row, chosen(challenge), challenge.statement["size"]),
        act=act,
    )


def _shown_facts(grant: Grant) -> list[Any]:
    return [grant.version, grant.agent.name, grant.service_provider.name]


def _suspended_grants() -> Any:
    cause = Grant.SuspensionCause.RESTORED
    suspended = Grant.objects.filter(status=Grant.Status.SUSPENDED, suspension_cause=cause)
    return suspended.select_related("agent__human", "service_provider").order_by("id")


def _provable(row: LogBreak, ids: Sequence[str], now: datetime) -> tuple[Anchor, list[Grant]]:
    if not 1 <= len(set(ids)) <= MAX_RELEASED:
        raise InvalidStateError(_("Choose 1 to %(n)s grants.") % {"n": MAX_RELEASED})
    found = judge_suspended_grants(row, now=now)
    if found.anchor is None:
        raise InvalidStateError(found.problem)
    chosen = [each for each in found.grants if str(each.grant.pk) in ids]
    if len(chosen) != len(set(ids)):
        raise InvalidStateError(
            "One of these grants is no longer suspended by the restore. Reload the page."
        )
    if refusal := next((each.refusal for each in chosen if each.refusal), ""):
        raise InvalidStateError(refusal)
    return found.anchor, [each.grant for each in chosen]


def _digest(grants: Sequence[Grant]) -> bytes:
    return hashlib.sha256(
        canonical_json([[str(each.pk), each.version] for each in grants])
    ).digest()


def _ceremony(row: LogBreak, human: Human, session_key: str) -> Ceremony:
    return Ceremony(Challenge.Purpose.RELEASE, session_key, human, row.name)


def _second(row: LogBreak, human: Human, session_key: str) -> Ceremony:
    return Ceremony(Challenge.Purpose.SECOND_STEP, session_key, human, row.name)
