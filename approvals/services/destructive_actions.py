"""Irreversible acts ask first: what was shown, named and signed for ends, or nothing does.

One path for all of them: `preview` describes the rows; the page posts to a path with a hash of
that, to which the passkey signature is bound; `end_for_good` locks the rows, describes them again
and compares.
"""

import unicodedata
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, Literal

from django.db import transaction
from django.db.models import Q, QuerySet
from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop, ngettext

from agentauth.protocol.encoding import b64u_encode, canonical_json, sha256
from agentauth.protocol.errors import (
    GrantChangedError,
    InvalidRequestError,
    InvalidStateError,
    NotFoundError,
)
from approvals import sentences
from approvals.models import Challenge, Passkey, SetupCode
from approvals.services import cascade_previews
from approvals.services.cascade_previews import Cascade
from approvals.services.human_row_locks import hold_human
from approvals.services.human_suspension_and_erasure import delete_human, hold_ways_in
from approvals.services.recovery import check_taken_part_in
from approvals.services.text_erasure import forget_invitation
from audit.services import Actor
from kms.models import Key, KeyCertificate
from kms.process_key_certificates import revoke_certificate
from kms.services import disable_key, promote_due_keys
from registry.models import Agent, Grant, Human, ServiceProvider
from registry.roles import Permission
from registry.services.agent_owners import own_agent_ids
from registry.services.agents import revoke_agent
from registry.services.grants import revoke_grant
from registry.services.roles import check_permission
from registry.services.service_providers import revoke_service_provider

Party = Literal["owner", "administrator"]


@dataclass(frozen=True, slots=True)
class Kind:
    """How rows of one kind are read, described and ended, and their English words: `verb` and
    `plural`.

    `rows` reads related rows by separate queries: under a lock, a join would show them as they were
    before the wait. `lock` locks what the description rests on before the rows themselves, in the
    order that every act uses.
    """

    rows: QuerySet[Any]
    describe: Callable[[Any, datetime], Cascade]
    end: Callable[..., object]
    verb: str
    plural: str
    lock: Callable[[QuerySet[Any], datetime], None] = lambda _rows, _now: None


def _lock_agents(agents: QuerySet[Agent], _now: datetime) -> None:
    # An approval locks the agent first, so none is in progress while this lock is held.
    list(agents.select_for_update(no_key=True).order_by("pk"))


def _lock_humans(humans: QuerySet[Human], now: datetime) -> None:
    """Lock ways in, passkeys, agents, humans, in the order signatures and deletions use."""
    recoveries = [(human, hold_ways_in(human)) for human in humans]
    list(Passkey.objects.select_for_update().filter(human__in=humans).order_by("pk"))
    _lock_agents(Agent.objects.filter(human__in=humans), now)
    # Includes all owners, whom each deletion locks: two who delete each other must not deadlock.
    owners = Q(is_staff=True, status=Human.Status.ACTIVE)
    chosen = Human.objects.filter(Q(pk__in=humans.values("pk")) | owners)
    list(chosen.select_for_update(no_key=True).order_by("pk"))
    for human, held in recoveries:
        check_taken_part_in(human, held)


def _lock_setups(invitations: QuerySet[SetupCode], _now: datetime) -> None:
    # In the order a setup uses: its challenge, then the invitation.
    subjects = [str(pk) for pk in invitations.values_list("pk", flat=True)]
    challenges = Challenge.objects.filter(purpose=Challenge.Purpose.SETUP, subject__in=subjects)
    list(challenges.select_for_update().order_by("pk"))


def _lock_purposes(keys: QuerySet[Key], _now: datetime) -> None:
    # All keys of the purpose, as each disabling locks them, because the last one must stay.
    of_purposes = Key.objects.filter(purpose__in=keys.values("purpose"))
    list(of_purposes.select_for_update(no_key=True).order_by("pk"))


KINDS: Final[Mapping[str, Kind]] = {
    "agent": Kind(
        Agent.objects.prefetch_related("human"),
        cascade_previews.describe_agent,
        lambda row, **how: revoke_agent(agent=row, **how),
        "revoke",
        gettext_noop("agents"),
    ),
    "grant": Kind(
        Grant.objects.prefetch_related("agent__human", "service_provider"),
        cascade_previews.describe_grant,
        lambda row, **how: revoke_grant(grant=row, **how),
        "revoke",
        gettext_noop("grants"),
        lambda rows, now: _lock_agents(Agent.objects.filter(pk__in=rows.values("agent_id")), now),
    ),
    "service_provider": Kind(
        ServiceProvider.objects.all(),
        cascade_previews.describe_service_provider,
        lambda row, **how: revoke_service_provider(service_provider=row, **how),
        "revoke",
        gettext_noop("service providers"),
    ),
    "human": Kind(
        Human.objects.all(),
        cascade_previews.describe_human,
        lambda row, **how: delete_human(human=row, **how),
        "delete",
        gettext_noop("humans"),
        _lock_humans,
    ),
    "invitation": Kind(
        SetupCode.objects.all(),
        cascade_previews.describe_invitation,
        lambda row, **how: forget_invitation(invitation=row, **how),
        "forget",
        gettext_noop("invitations"),
        _lock_setups,
    ),
    "key": Kind(
        Key.objects.all(),
        cascade_previews.describe_key,
        lambda row, **how: disable_key(kid=row.kid, **how),
        "disable",
        gettext_noop("keys"),
        _lock_purposes,
    ),
    "key_certificate": Kind(
        KeyCertificate.objects.prefetch_related("issuer"),
        cascade_previews.describe_key_certificate,
        lambda row, **how: revoke_certificate(serial=str(row.serial), **how),
        "revoke",
        gettext_noop("certificates"),
    ),
}


@dataclass(frozen=True, slots=True)
class Preview:
    """What one press would end: `ends`, and `stays` for chosen rows that cannot end.

    `typed` is what the human must type; empty if an owner revokes a grant, which needs neither
    typing nor a passkey.
    """

    kind: str
    ends: tuple[Cascade, ...]
    stays: tuple[Cascade, ...]
    typed: str

    @property
    def counts(self) -> list[str]:
        """Totals of what ends: rows if there are several, grants, access tokens, requests."""
        grants = sum(each.grants for each in self.ends)
        tokens = sum(each.tokens for each in self.ends)
        waiting = sum(each.waiting for each in self.ends)
        said = (
            [f"{sentences.whole(len(self.ends))} {_(KINDS[self.kind].plural)}"]
            if len(self.ends) > 1
            else []
        )
        if grants and self.kind != "grant":
            said.append(
                ngettext("%(n)s grant", "%(n)s grants", grants) % {"n": sentences.whole(grants)}
            )
        if tokens:
            valid = ngettext(
                "%(n)s access token that is valid now",
                "%(n)s access tokens that are valid now",
                tokens,
            )
            said.append(valid % {"n": sentences.whole(tokens)})
        if waiting:
            asked = ngettext(
                "%(n)s request that waits for an answer",
                "%(n)s requests that wait for an answer",
                waiting,
            )
            said.append(asked % {"n": sentences.whole(waiting)})
        return said

    @property
    def shown(self) -> str:
        """A hash of what the human decides by; the path the button posts to ends with it.

        Tokens and waiting requests are left out: agents make new ones while the human reads.
        """
        ends = [[each.pk, each.title, list(each.about), list(each.facts)] for each in self.ends]
        return b64u_encode(sha256(canonical_json([self.kind, self.typed, ends])))


def preview(
    kind: str, ids: Sequence[uuid.UUID], *, human: Human, party: Party, now: datetime
) -> Preview:
    """Describe what ends with these rows.

    Raises NotFoundError if a row is missing or not this party's.
    """
    return _describe(kind, _find_rows(kind, ids, human, party), human, party, now)


def end_for_good(
    kind: str,
    ids: Sequence[uuid.UUID],
    *,
    shown: str,
    human: Human,
    party: Party,
    actor: Actor,
    now: datetime,
) -> Preview:
    """End what the page with the hash `shown` showed: all of it, or nothing.

    The caller has checked the passkey, if one is needed.

    1. Lock the rows, agents first.  2. Describe them as they are now, and compare.
    3. End each.  4. Check that the human may still act.

    Raises NotFoundError as `preview`, and if the human was suspended or signed out meanwhile;
    GrantChangedError if the page would look different now; InvalidStateError if nothing is left to
    end or a service refuses one of the rows.
    """
    if kind == "key":
        promote_due_keys(now=now)
    with transaction.atomic():
        chosen = _find_rows(kind, ids, human, party)
        KINDS[kind].lock(chosen, now)
        rows = list(chosen.select_for_update(no_key=True))
        found = _describe(kind, rows, human, party, now)
        check_shown(found, shown)
        by_id = {str(row.pk): row for row in rows}
        for each in found.ends:
            KINDS[kind].end(by_id[each.pk], actor=actor, now=now)
        hold_human(human)
    return found


def check_shown(found: Preview, shown: str) -> None:
    """Check that the page would look the same now.

    Raises GrantChangedError if not, InvalidStateError if nothing is left to end.
    """
    if not found.ends:
        raise InvalidStateError(_("Nothing was done. %(why)s") % {"why": found.stays[0].refusal})
    if found.shown != shown:
        raise GrantChangedError(
            "What this would end has changed since you opened the page. Nothing was done: "
            "reload it and check again."
        )


def check_typed(found: Preview, text: str) -> None:
    """Check what the human typed, ignoring case and extra spaces. Raises InvalidRequestError."""
    if _plain(text) != _plain(found.typed):
        raise InvalidRequestError(
            _("Nothing was done. Type %(text)s to confirm.") % {"text": f"“{found.typed}”"}
        )


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _find_rows(kind: str, ids: Sequence[uuid.UUID], human: Human, party: Party) -> QuerySet[Any]:
    """The rows in id order, in which they are locked and ended.

    Raises NotFoundError, or PermissionDeniedError for a role that ends nothing.
    """
    if party == "administrator":
        check_permission(human, Permission.OWN)
    if kind not in KINDS:
        raise NotFoundError
    rows = KINDS[kind].rows.filter(pk__in=ids)
    if party == "owner":
        rows = rows.filter(
            **{{"agent": "pk__in", "grant": "agent__in"}[kind]: own_agent_ids(human)}
        )
    if not ids or rows.count() != len(set(ids)):
        raise NotFoundError
    return rows.order_by("pk")


def _describe(kind: str, rows: Iterable[Any], human: Human, party: Party, now: datetime) -> Preview:
    each = [_unless_oneself(KINDS[kind].describe(row, now), human) for row in rows]
    ends = [loss for loss in each if not loss.refusal]
    stays = [loss for loss in each if loss.refusal]
    return Preview(kind, tuple(ends), tuple(stays), _text_to_type(kind, ends, party))


def _unless_oneself(loss: Cascade, human: Human) -> Cascade:
    if loss.refusal or loss.pk != str(human.pk):
        return loss
    refusal = _("You cannot delete yourself: another administrator can.")
    return replace(loss, refusal=refusal)


def _text_to_type(kind: str, ends: Sequence[Cascade], party: Party) -> str:
    """What to type: the name of the single row, or the number of rows."""
    if not ends or (party == "owner" and kind == "grant"):
        return ""
    if len(ends) == 1:
        return ends[0].typed
    return f"{KINDS[kind].verb} {len(ends)} {KINDS[kind].plural}"
