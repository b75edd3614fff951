"""An administrator looks at a service's new logo as people will see it, and signs for it."""

import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from django.utils.translation import gettext as _

from agentauth.protocol.errors import InvalidStateError, NotFoundError
from agentauth.protocol.statement_building import logo_statement
from approvals.consent_texts import service_line
from approvals.models import Challenge, Receipt
from approvals.quotation_marks import quoted
from approvals.services.challenges import Ceremony
from approvals.services.page_snapshot_token import Page
from approvals.services.passkey_signature_flow import accept_signature, ask_signature, receipt_of
from approvals.services.statement_builders import provider_ref, signing
from audit.services import Actor
from registry.models import Human, ServiceLogo, ServiceProvider
from registry.roles import Permission
from registry.services.roles import check_permission
from registry.services.service_logos import approve_logo, is_ours, services_with_copy

KIND: Final = "logo"


@dataclass(frozen=True, slots=True)
class Logos:
    """The logos of one service provider: the approved one and the one that waits."""

    approved: ServiceLogo | None
    waiting: ServiceLogo | None


def find_provider(
    provider_id: uuid.UUID, *, human: Human, permission: Permission = Permission.OWN
) -> ServiceProvider:
    """The service provider, for an administrator with this permission.

    Raises NotFoundError otherwise, or PermissionDeniedError for a role without it.
    """
    check_permission(human, permission)
    found = ServiceProvider.objects.filter(pk=provider_id).first()
    if found is None:
        raise NotFoundError
    return found


def find_logos(provider: ServiceProvider) -> Logos:
    """One query, and one for the seal. An approved row without a valid seal counts as none."""
    rows = list(ServiceLogo.objects.filter(service_provider=provider))
    return Logos(
        next((row for row in rows if row.approved_at and row.is_sealed()), None),
        next((row for row in rows if row.approved_at is None), None),
    )


def proposed_logos() -> list[ServiceLogo]:
    """The logos that wait for an administrator, oldest first, without their pictures."""
    rows = ServiceLogo.objects.filter(approved_at=None).defer("image")
    return list(rows.select_related("service_provider").order_by("proposed_at"))


def waiting_page(provider: ServiceProvider) -> Page:
    """What the signature rests on. Raises InvalidStateError if no logo waits."""
    logos = find_logos(provider)
    row = logos.waiting
    if row is None or not is_ours(row):
        raise InvalidStateError("No logo waits for a decision. Upload one first.")
    replaced = logos.approved.sha256 if logos.approved else None
    parts = {"digest": row.sha256, "before": replaced}
    lines = [
        service_line(provider.name, provider.audience),
        _("As an administrator, I approve this logo of the service."),
        _("It replaces the logo with the SHA-256 %(before)s.") % parts
        if replaced
        else _("The service had no logo before."),
        _(
            "People see it beside the service’s name, marked as the service’s. It changes no "
            "permission and no limit."
        ),
        _("SHA-256 of the picture: %(digest)s") % parts,
    ]
    shown = {
        "service_name": provider.name,
        "audience": provider.audience,
        "logo": row.sha256,
        "replaced_logo": replaced,
        "warnings": _warnings(row),
        "text": "\n".join(lines),
    }
    return Page(Challenge.Purpose.LOGO, str(provider.pk), shown)


def _warnings(row: ServiceLogo) -> list[str]:
    """Name each service with the same logo: the administrator decides whose picture it is."""
    return [
        _(
            "It is exactly the logo of service %(name)s at %(audience)s. People could mistake one "
            "service for the other."
        )
        % {"name": quoted(each.name), "audience": each.audience}
        for each in services_with_copy(row)
    ]


def begin_approval(
    *, provider: ServiceProvider, human: Human, drawn: str, session_key: str, now: datetime
) -> dict[str, Any]:
    """Make the statement of the approval and ask for its signature.

    Raises InvalidStateError if no logo waits, and what `check_drawn` raises.
    """
    page = waiting_page(provider)
    statement = logo_statement(
        signing(None, human, page.shown["text"], now),
        service_provider=provider_ref(provider),
        logo_sha256=page.shown["logo"],
    )
    return ask_signature(
        _ceremony(provider, human, session_key),
        human=human,
        statement=statement,
        consent_text=page.shown["text"],
        page=page,
        drawn=drawn,
        now=now,
    )


def finish_approval(
    *,
    provider: ServiceProvider,
    human: Human,
    session_key: str,
    credential: object,
    actor: Actor,
    now: datetime,
) -> Receipt:
    """Approve the logo that was signed; people see it from now on.

    Raises InvalidAssertionError; InvalidStateError if it no longer waits; GrantChangedError if the
    page would look different now.
    """

    def act(challenge: Challenge) -> None:
        row = find_logos(provider).waiting
        # A logo uploaded after `page` was compared is not the one that was signed.
        if row is None or row.sha256 != challenge.statement["logo_sha256"]:
            raise InvalidStateError("This logo no longer waits for a decision. Reload the page.")
        approve_logo(row=row, actor=actor, now=now)

    return accept_signature(
        _ceremony(provider, human, session_key),
        human=human,
        credential=credential,
        now=now,
        page=lambda _challenge: waiting_page(provider),
        act=act,
    )


def approval_receipt(provider: ServiceProvider) -> Receipt | None:
    """The receipt of the latest approval of a logo of this service; None without one."""
    return receipt_of(KIND, str(provider.pk))


def _ceremony(provider: ServiceProvider, human: Human, session_key: str) -> Ceremony:
    return Ceremony(Challenge.Purpose.LOGO, session_key, human, str(provider.pk))
