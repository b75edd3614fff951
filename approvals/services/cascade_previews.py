"""What ends along with an agent, grant, service provider, human, invitation, key or certificate."""

import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db.models import Q
from django.db.models.functions import Coalesce, Left
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from agentauth.protocol.approval_receipt import RECEIPT_TYP
from agentauth.protocol.behavioural_envelope import parse_envelope
from agentauth.protocol.capability import parse_capabilities
from agentauth.protocol.encoding import b64u_encode, canonical_json
from agentauth.protocol.errors import InvalidStateError
from approvals import sentences
from approvals.models import Passkey, Receipt, SetupCode
from approvals.quotation_marks import quoted
from audit.models import Checkpoint
from kms.lifetimes import TOKEN_OVERLAP
from kms.models import Key, KeyCertificate
from kms.services import refuse_to_disable
from registry.models import Agent, Grant, Human, ServiceProvider, Token
from registry.refusal_translation import refusal_text
from registry.services.humans import check_deletable

# Grants, agents or services named per row; the others are counted.
_NAMED = 20
# Grants in one statement.
_PAGE = 1_000
_KID_TYPED = _ID_TYPED = 8
# A longer name takes too long to type in an emergency, so part of the id is typed instead.
_NAME_TYPED = 32
_HELD = (Grant.Status.APPROVED, Grant.Status.SUSPENDED)


@dataclass(frozen=True, slots=True)
class Cascade:
    """What ends with one row. `typed` is what the human types, `title` its name on pages.

    `about` tells which row it is. `grants` counts approved and suspended grants, `tokens` access
    tokens valid now, `waiting` requests that wait for an answer. Agents get more tokens and make
    more requests while the page is read. `refusal` says why the row cannot end; empty if it can.
    """

    pk: str
    typed: str
    title: str
    about: tuple[str, ...]
    facts: tuple[str, ...]
    grants: int = 0
    tokens: int = 0
    waiting: int = 0
    refusal: str = ""


def describe_agent(agent: Agent, now: datetime) -> Cascade:
    """Its grants, requests and tokens, and the key that tells it from agents of the same name."""
    owner = agent.human
    about = [
        *_owned_by(owner),
        _("Key fingerprint: %(key)s") % {"key": sentences.fingerprint(agent.jkt)},
        _("Id: %(id)s") % {"id": agent.pk},
    ]
    held = _living_grants(Q(agent=agent), now)
    n = held.count()
    return _loss(
        agent.pk,
        _text_to_type(agent.name, agent.pk),
        quoted(agent.name),
        about,
        [*(_may(grant) for grant in held.select_related("service_provider")[:_NAMED]), *_more(n)],
        grants=n,
        tokens=_tokens(Q(grant__agent=agent), now),
        waiting=_waiting(Q(agent=agent), now),
        refusal=_("It has already been revoked.") if agent.status == Agent.Status.REVOKED else "",
    )


def describe_grant(grant: Grant, now: datetime) -> Cascade:
    """What it permits and who owns it."""
    agent, provider = grant.agent, grant.service_provider
    about = [*_owned_by(agent.human), _("Id: %(id)s") % {"id": grant.pk}]
    title = _("%(agent)s at %(at)s") % {"agent": quoted(agent.name), "at": quoted(provider.name)}
    typed = _text_to_type(agent.name, grant.pk)
    if grant.status_at(now) not in _HELD:
        refusal = _("It is not approved, or has ended, so it cannot be revoked.")
        return _loss(grant.pk, typed, title, about, (), refusal=refusal)
    return _loss(
        grant.pk, typed, title, about, _terms(grant), grants=1, tokens=_tokens(Q(grant=grant), now)
    )


def describe_service_provider(provider: ServiceProvider, now: datetime) -> Cascade:
    """Its address and the grants at it.

    Of many grants only the oldest are named and the rest are not counted, because approvals go on
    and each would change the page.
    """
    held = _living_grants(Q(service_provider=provider), now)
    n = held.count()
    facts = [
        _("Grant of agent %(agent)s") % {"agent": quoted(grant.agent.name)}
        for grant in held.select_related("agent")[:_NAMED]
    ]
    return _loss(
        provider.pk,
        _text_to_type(provider.slug, provider.pk),
        quoted(provider.name),
        [_("Address: %(audience)s") % {"audience": provider.audience}],
        [*facts, *([_("More grants")] if n > _NAMED else [])],
        grants=n,
        tokens=_tokens(Q(grant__service_provider=provider), now),
        waiting=_waiting(Q(service_provider=provider), now),
        refusal=_("It has already been revoked.")
        if provider.status == ServiceProvider.Status.REVOKED
        else "",
    )


def describe_human(human: Human, now: datetime) -> Cascade:
    """Their agents, each with its number of grants, and their passkeys."""
    agents = list(human.agents.exclude(status=Agent.Status.REVOKED).order_by("id"))
    held = Counter(_living_grants(Q(agent__human=human), now).values_list("agent_id", flat=True))
    facts = [
        ngettext("Agent %(agent)s, with %(n)s grant", "Agent %(agent)s, with %(n)s grants", n)
        % {"agent": quoted(agent.name), "n": sentences.whole(n)}
        for agent in agents[:_NAMED]
        for n in [held[agent.pk]]
    ]
    if (n := len(agents) - _NAMED) > 0:
        facts.append(
            ngettext("%(n)s more agent", "%(n)s more agents", n) % {"n": sentences.whole(n)}
        )
    n = Passkey.objects.filter(human=human).count()
    facts.append(ngettext("%(n)s passkey", "%(n)s passkeys", n) % {"n": sentences.whole(n)})
    return _loss(
        human.pk,
        human.email,
        quoted(human.name),
        [_("Address: %(email)s") % {"email": human.email}],
        facts,
        grants=held.total(),
        tokens=_tokens(Q(grant__agent__human=human), now),
        waiting=_waiting(Q(agent__human=human), now),
        refusal=_refusal_of(lambda: check_deletable(human)),
    )


def describe_invitation(row: SetupCode, now: datetime) -> Cascade:
    """The link, and the address it went to."""
    ends = _("Valid until %(at)s.") if row.expires_at > now else _("Expired on %(at)s.")
    about = [
        _("Created on %(at)s.") % {"at": _date(row.created_at)},
        ends % {"at": _date(row.expires_at)},
    ]
    facts = [_("The invitation link"), _("The address, here and in the log")]
    used = row.used_at is not None or row.kind != SetupCode.Kind.INVITATION
    refusal = _("It was used. Delete the human instead.") if used else ""
    return _loss(row.pk, row.email, quoted(row.email), about, facts, refusal=refusal)


def describe_key(key: Key, now: datetime) -> Cascade:
    """Since when it signs, and what of its signatures becomes worthless."""
    signs = (
        _("It signed from %(begin)s to %(end)s.")
        if key.retired_at
        else _("It signs from %(begin)s on.")
    )
    times = {"begin": _date(key.active_from), "end": _date(key.retired_at or now)}
    about = [_("Name: %(kid)s") % {"kid": key.kid}, signs % times]
    facts = _SIGNED[key.purpose](key, now)
    keys = list(Key.objects.filter(purpose=key.purpose))
    refusal = _refusal_of(lambda: refuse_to_disable(key, keys, now=now))
    title = _("%(purpose)s key %(kid)s") % {"purpose": key.purpose, "kid": key.kid[:_KID_TYPED]}
    purpose = key.purpose
    tokens = _tokens(_issued_under(key), now) if purpose == Key.Purpose.TOKEN else 0
    return _loss(key.pk, key.kid[:_KID_TYPED], title, about, facts, tokens=tokens, refusal=refusal)


def describe_key_certificate(row: KeyCertificate, now: datetime) -> Cascade:
    """The process that holds its key, and when it expires."""
    about = [
        _("Process: %(instance)s") % {"instance": row.instance},
        _("Valid until %(at)s.") % {"at": _date(row.not_after)},
    ]
    facts = [
        _(
            "Every token that its key signed is refused from now on. The process gets another "
            "key certified."
        )
    ]
    refusal = _("It has already been revoked.") if row.state == KeyCertificate.State.REVOKED else ""
    title = str(row.serial)
    return _loss(title, title[-_ID_TYPED:], title, about, facts, refusal=refusal)


def _of_tokens(key: Key, now: datetime) -> Iterator[str]:
    yield _("Every token it signed is refused from now on. Agents ask for new ones.")
    certified = KeyCertificate.objects.filter(issuer=key, state=KeyCertificate.State.CERTIFIED)
    if n := certified.filter(not_after__gt=now).count():
        yield ngettext(
            "%(n)s certificate of a process ends with it.",
            "%(n)s certificates of processes end with it.",
            n,
        ) % {"n": sentences.whole(n)}


def _of_receipts(key: Key, now: datetime) -> Iterator[str]:
    # Receipts whose `kid` the job has not filled in yet.
    unread = Receipt.objects.filter(kid=None, compact__startswith=_beginning(key))
    yield ngettext(
        "%(n)s receipt that it signed is no longer valid as proof.",
        "%(n)s receipts that it signed are no longer valid as proof.",
        n := Receipt.objects.filter(kid=key.kid).count() + unread.count(),
    ) % {"n": sentences.whole(n)}
    under = list(_approved_under(key, now))
    for grant in _living_grants(Q(pk__in=under[:_NAMED]), now).select_related(
        "agent", "service_provider"
    ):
        yield _("Agent %(agent)s at %(at)s cannot act until its owner approves it again.") % {
            "agent": quoted(grant.agent.name),
            "at": quoted(grant.service_provider.name),
        }
    yield from _more(len(under))


def _approved_under(key: Key, now: datetime) -> Iterator[uuid.UUID]:
    """The held grants whose newest approval this key signed, in id order, read a page at a time."""
    approvals = Receipt.objects.filter(kind="approval", decision="approve")
    signed = approvals.annotate(by=Coalesce("kid", Left("compact", len(_beginning(key)))))
    held = _living_grants(Q(), now).values_list("pk", flat=True)
    last = uuid.UUID(int=0)
    while page := list(held.filter(pk__gt=last)[:_PAGE]):
        of_page = signed.filter(subject__in=[str(pk) for pk in page])
        newest = dict(of_page.order_by("created_at", "id").values_list("subject", "by"))
        yield from (pk for pk in page if newest.get(str(pk)) in {key.kid, _beginning(key)})
        last = page[-1]


def _of_the_log(key: Key, now: datetime) -> Iterator[str]:
    signed = Checkpoint.objects.filter(at__gte=key.active_from, at__lt=key.retired_at or now)
    yield ngettext(
        "%(n)s checkpoint that it signed is no longer proof by itself.",
        "%(n)s checkpoints that it signed are no longer proof by themselves.",
        n := signed.count(),
    ) % {"n": sentences.whole(n)}


_SIGNED: Mapping[str, Callable[[Key, datetime], Iterator[str]]] = {
    Key.Purpose.TOKEN: _of_tokens,
    Key.Purpose.RECEIPT: _of_receipts,
    Key.Purpose.AUDIT: _of_the_log,
}


def _beginning(key: Key) -> str:
    """The prefix of each receipt by this key: one header form (agentauth/protocol/jose.py)."""
    header = {"alg": key.algorithm, "kid": key.kid, "typ": RECEIPT_TYP}
    return f"{b64u_encode(canonical_json(header))}."


def _issued_under(key: Key) -> Q:
    begun = Q(issued_at__gte=key.active_from)
    return begun & Q(issued_at__lt=key.retired_at + TOKEN_OVERLAP) if key.retired_at else begun


def _living_grants(which: Q, now: datetime) -> Any:
    """Approved and suspended grants in the order they were requested, without revoked agents'."""
    found = Grant.objects.filter(which, status__in=_HELD, valid_until__gt=now)
    return found.exclude(agent__status=Agent.Status.REVOKED).order_by("id")


def _terms(grant: Grant) -> Sequence[str]:
    capabilities = parse_capabilities(grant.capabilities or [])
    envelope = parse_envelope(grant.envelope or {})
    return sentences.permissions(
        grant.service_provider.name, capabilities, envelope
    ) + sentences.limits(envelope)


def _may(grant: Grant) -> str:
    """One line for the whole grant."""
    capabilities = parse_capabilities(grant.capabilities or [])
    said = "; ".join(
        sentences.permission(each, grant.service_provider.name) for each in capabilities
    )
    return f"{said[:1].upper()}{said[1:]}."


def _owned_by(owner: Human | None) -> list[str]:
    if owner is None:
        return []
    return [_("Owner: %(name)s, %(email)s") % {"name": quoted(owner.name), "email": owner.email}]


def _text_to_type(name: str, pk: object) -> str:
    return name if len(name) <= _NAME_TYPED else str(pk)[-_ID_TYPED:]


def _loss(
    pk: object,
    typed: str,
    title: str,
    about: Iterable[str],
    facts: Iterable[str],
    **more: Any,
) -> Cascade:
    return Cascade(str(pk), typed, title, tuple(about), tuple(facts), **more)


def _more(held: int) -> list[str]:
    n = held - _NAMED
    return (
        [ngettext("%(n)s more grant", "%(n)s more grants", n) % {"n": sentences.whole(n)}]
        if n > 0
        else []
    )


def _waiting(which: Q, now: datetime) -> int:
    return Grant.objects.waiting(now).filter(which).count()


def _tokens(which: Q, now: datetime) -> int:
    return Token.objects.filter(which, revoked_at=None, expires_at__gt=now).count()


def _date(at: datetime) -> str:
    # UTC for every reader: the text is compared when the button is pressed.
    return f"{at:%Y-%m-%d %H:%M} UTC"


def _refusal_of(ask: Callable[[], None]) -> str:
    try:
        ask()
    except InvalidStateError as error:
        return refusal_text(error)
    return ""
