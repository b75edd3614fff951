"""An administrator reads a version of a catalogue as people will see it, and signs for it."""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from django.utils.translation import gettext as _

from agentauth.protocol.capability import Capability
from agentauth.protocol.catalogue import ArgumentWords, Catalogue
from agentauth.protocol.errors import InvalidStateError, NotFoundError
from agentauth.protocol.money import Money
from agentauth.protocol.statement_building import catalogue_statement
from approvals import catalogue_consent_texts, sentences
from approvals.catalogue_words import argument_name, measured
from approvals.models import Challenge, Receipt
from approvals.quotation_marks import quoted
from approvals.services.challenges import Ceremony
from approvals.services.page_snapshot_token import Page
from approvals.services.passkey_signature_flow import accept_signature, ask_signature, receipt_of
from approvals.services.statement_builders import provider_ref, signing
from audit.services import Actor
from registry.models import CatalogueVersion, Human
from registry.roles import Permission
from registry.services.catalogues import (
    approve_catalogue,
    published_catalogue,
    read_catalogue,
    resembled_names,
    words_of,
)
from registry.services.roles import check_permission

KIND: Final = "catalogue"
# Sample values in the preview of an entry: a payment, and the value of each argument.
_AMOUNT: Final = Money(1000, "EUR")
_VALUE: Final = 5_400


@dataclass(frozen=True, slots=True)
class ShownEntry:
    """One entry as people will see it (`now`) and as they see it today; empty if not shown.

    `head` is the registry's own sentence, which stays.
    """

    key: str
    head: str
    now: list[str]
    before: list[str]
    icon: str = ""
    risk: str = ""

    @property
    def state(self) -> str:
        """`new`, `removed`, `changed` or `same`."""
        if not self.before:
            return "new"
        if not self.now:
            return "removed"
        return "same" if self.now == self.before else "changed"


@dataclass(frozen=True, slots=True)
class Review:
    """What an administrator reads before they sign, and the token of that page."""

    entries: list[ShownEntry]
    warnings: list[str]
    text: str
    page: Page


def find_version(
    row_id: uuid.UUID, *, human: Human, permission: Permission = Permission.OWN
) -> CatalogueVersion:
    """The version with this id, for an administrator with this permission.

    Raises NotFoundError otherwise, or PermissionDeniedError for a role without it.
    """
    check_permission(human, permission)
    rows = CatalogueVersion.objects.select_related("service_provider")
    row = rows.filter(pk=row_id).first()
    if row is None:
        raise NotFoundError
    return row


def proposed_catalogues() -> list[CatalogueVersion]:
    """The versions that wait for an administrator, oldest first."""
    rows = CatalogueVersion.objects.filter(status=CatalogueVersion.Status.PROPOSED)
    return list(rows.select_related("service_provider").order_by("proposed_at"))


def review_version(row: CatalogueVersion) -> Review:
    """This version beside what people read now, with warnings."""
    provider = row.service_provider
    new, approved = read_catalogue(row), published_catalogue(provider)
    warnings = [
        _("%(place)s contains or looks like %(name)s, which is not this service’s name.")
        % {"place": place, "name": quoted(name)}
        for place, name in resembled_names(new.catalogue, provider)
    ]
    text = catalogue_consent_texts.catalogue_text(
        service_provider=provider.name,
        audience=provider.audience,
        new=new,
        replaces=approved.ref.version if approved else None,
    )
    shown = {
        "service_name": provider.name,
        "audience": provider.audience,
        "catalogue": new.ref.sha256,
        "replaces": approved.ref.to_json() if approved else None,
        "warnings": warnings,
        "text": text,
    }
    page = Page(Challenge.Purpose.CATALOGUE, str(row.pk), shown)
    entries = _entries(new.catalogue, words_of(approved), provider.name)
    return Review(list(entries), warnings, text, page)


def begin_approval(
    *, row: CatalogueVersion, human: Human, drawn: str, session_key: str, now: datetime
) -> dict[str, Any]:
    """Make the statement of the approval and ask for its signature.

    Raises InvalidStateError if the version no longer waits, and what `check_drawn` raises.
    """
    page = _page_of_waiting(row)
    statement = catalogue_statement(
        signing(None, human, page.shown["text"], now),
        service_provider=provider_ref(row.service_provider),
        catalogue=read_catalogue(row).ref,
    )
    return ask_signature(
        _ceremony(row, human, session_key),
        human=human,
        statement=statement,
        consent_text=page.shown["text"],
        page=page,
        drawn=drawn,
        now=now,
    )


def finish_approval(
    *,
    row: CatalogueVersion,
    human: Human,
    session_key: str,
    credential: object,
    actor: Actor,
    now: datetime,
) -> Receipt:
    """Approve the version that was signed; people read its words from now on.

    Raises InvalidAssertionError; InvalidStateError if it no longer waits; GrantChangedError if the
    page would look different now.
    """

    def act(_challenge: Challenge) -> None:
        approve_catalogue(row=row, actor=actor, now=now)

    return accept_signature(
        _ceremony(row, human, session_key),
        human=human,
        credential=credential,
        now=now,
        page=lambda _challenge: _page_of_waiting(row),
        act=act,
    )


def approval_receipt(row: CatalogueVersion) -> Receipt | None:
    """The receipt of the version's approval; None if it was not approved."""
    return receipt_of(KIND, str(row.pk))


def _page_of_waiting(row: CatalogueVersion) -> Page:
    row.refresh_from_db()
    if row.status != CatalogueVersion.Status.PROPOSED:
        raise InvalidStateError("This version no longer waits for a decision. Reload the page.")
    return review_version(row).page


def _ceremony(row: CatalogueVersion, human: Human, session_key: str) -> Ceremony:
    return Ceremony(Challenge.Purpose.CATALOGUE, session_key, human, str(row.pk))


def _entries(new: Catalogue, old: Catalogue, at: str) -> Iterator[ShownEntry]:
    """Every entry of both catalogues, in the order of the keys."""
    for key in sorted({*new.actions, *old.actions}):
        words = new.actions.get(key) or old.actions[key]
        kind = _sample(words.kind)
        yield ShownEntry(
            key,
            _("The agent may %(permission)s.") % {"permission": sentences.permission(kind, at)},
            _action_lines(new, key),
            _action_lines(old, key),
            words.icon,
            sentences.risk(kind, new),
        )
    for name in sorted({*new.resources, *old.resources}):
        yield ShownEntry(name, "", _resource_lines(new, name), _resource_lines(old, name))


def _action_lines(catalogue: Catalogue, key: str) -> list[str]:
    """What people read about the entry: our sentence, the service's, its arguments."""
    words = catalogue.actions.get(key)
    if words is None:
        return []
    kind = _sample(words.kind)
    said = sentences.permission_said(catalogue, kind)
    extra = {"label": quoted(words.label), "icon": words.icon}
    lines = [said, _("In lists: %(label)s") % extra]
    lines += [_("Icon: %(icon)s") % extra] if words.icon else []
    if words.risk:
        lines.append(_("Risk: at least %(risk)s") % {"risk": sentences.risk_word(words.risk)})
    return lines + [_argument_line(name, each) for name, each in sorted(words.arguments.items())]


def _argument_line(name: str, words: ArgumentWords) -> str:
    parts = {"name": argument_name(name, words), "value": measured(_VALUE, words)}
    return _("%(name)s is at most %(value)s") % parts if parts["value"] else parts["name"] or ""


def _resource_lines(catalogue: Catalogue, name: str) -> list[str]:
    label = catalogue.resources.get(name)
    return [_("In the service’s words: %(label)s") % {"label": quoted(label)}] if label else []


def _sample(kind: Capability) -> Capability:
    """The entry as a permission; a payment needs an amount."""
    return replace(kind, max_amount=_AMOUNT) if kind.type == "transact" else kind
