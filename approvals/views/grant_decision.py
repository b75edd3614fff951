"""The approval page, the requests of its script and the receipt.

The script posts: review, review of a denial, second step, statement (it gets the passkey's
options), decision.
"""

import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_POST, require_safe

from agentauth.protocol.behavioural_envelope import parse_envelope
from agentauth.protocol.encoding import canonical_json, sha256
from agentauth.protocol.errors import InvalidRequestError, NotFoundError
from approvals.services import grant_decision_signing
from approvals.services.decidable_requests import (
    Case,
    decided_by,
    find_case,
    find_open_case,
)
from approvals.services.differences_since_signing import describe_differences
from approvals.services.offered_capabilities import current_offer
from approvals.services.passkey_signature_flow import receipt_of
from approvals.services.setup_and_sign_in import session_key_of
from approvals.services.term_choices import Terms, offered_terms, read_choices
from approvals.services.total_across_grants import other_grants, total_reach
from approvals.views.grants_in_words import (
    describe_grant,
    describe_lost,
    elsewhere,
    grant_status,
)
from approvals.views.narrowing_fields import (
    PermissionFields,
    hour_fields,
    limit_fields,
    permission_fields,
)
from approvals.views.request_helpers import (
    answer,
    human_of,
    member,
    read_posted_json,
    require_sign_in,
)
from approvals.views.usage_in_words import load_usage
from audit.fault_injection import fault_point
from registry.authentication import actor_of
from registry.models import Grant, Human
from registry.services.grant_renewal import renewal_refusal

WORDS = {"approve": gettext_lazy("Approved"), "deny": gettext_lazy("Denied")}
# An agent younger than a day is marked as new.
NEW_AGENT_SECONDS = 86_400


@require_safe
@require_sign_in
def page(request: HttpRequest, grant_id: uuid.UUID) -> HttpResponse:
    human, now = human_of(request), timezone.now()
    case = find_case(grant_id, human, now)
    grant = case.grant
    status = grant_status(grant, now)
    signs_again, renews = grant.waits_for_signature(now), grant.waits_for_renewal(now)
    context: dict[str, Any] = {
        "grant": grant,
        "agent": grant.agent,
        "provider": grant.service_provider,
        "is_mine": case.is_mine,
        "decides": case.decider is not None,
    }
    if status != Grant.Status.PENDING and not signs_again and not renews:
        receipt = receipt_of("approval", str(grant.pk))
        lines = describe_grant(grant, case.words)
        context |= {"status": status, "receipt": receipt, "lines": lines}
        context |= {"decided_by": decided_by(receipt, human)}
        context |= _use(grant, human, status, now)
        if status == Grant.Status.APPROVED and case.is_mine:
            context |= {"may_renew": True, "not_renewed": renewal_refusal(grant, now)}
        return render(request, "decided.html", context)
    asked = grant_decision_signing.draw_approval(case, now=now)
    terms, others = offered_terms(grant, now), other_grants(grant, now)
    used = load_usage(grant.agent)
    permissions = permission_fields(terms, case.published)
    context |= {
        "routed": case.who(),
        "drawn": asked.drawn,
        # Empty if this person may not decide: they read `terms` and sign nothing.
        "statement": [(each.text, _granted_permission(each, permissions)) for each in asked.lines]
        if case.decider
        else [],
        "terms": [each.text for each in asked.lines],
        "signs_again": signs_again,
        "renews": renews,
        "asked_at": grant.asked_at(now),
        "open_until": grant.open_until(now),
        "differences": describe_differences(grant, current_offer(grant).lost, viewer=human)
        if signs_again
        else [],
        "lost": describe_lost(grant),
        "permissions": permissions,
        "before": used.of_others(grant, terms.envelope, human.time_zone, now),
        "use": used.bars(grant, now) if renews else [],
        "limits": limit_fields(terms, now),
        "hours": hour_fields(terms.envelope, human.time_zone),
        "may_require_presence": not terms.envelope.requires_human_online,
        "totals": total_reach(grant, terms, others),
        "kept_as": _kept_as(grant, terms),
        "denial": grant_decision_signing.draw_denial(case, "", now=now)
        if status == Grant.Status.PENDING
        else None,
        "elsewhere": elsewhere(others),
        "warnings": case.warnings,
        "is_new": (now - grant.agent.created_at).total_seconds() < NEW_AGENT_SECONDS,
    }
    return render(request, "approval.html", context)


def _granted_permission(
    line: grant_decision_signing.Line, permissions: Sequence[PermissionFields]
) -> PermissionFields | None:
    """The permission that a line of the statement grants, if it grants one."""
    return None if line.place is None else permissions[line.place]


def _kept_as(grant: Grant, terms: Terms) -> str:
    """The session storage key for typed values: another version or other terms have another key."""
    offered = [each.to_json() for each in terms.capabilities]
    shown = sha256(canonical_json([offered, terms.envelope.to_json()])).hex()
    return f"{grant.pk} {grant.version} {shown[:16]}"


def _use(grant: Grant, human: Human, status: str, now: datetime) -> dict[str, Any]:
    """What a decided grant has used, and what else its limits count."""
    used = load_usage(grant.agent)
    if status not in {Grant.Status.APPROVED, Grant.Status.SUSPENDED}:
        return {"before": used.of_ended(grant, now)}
    before = used.of_others(grant, parse_envelope(grant.envelope or {}), human.time_zone, now)
    return {"use": used.bars(grant, now), "before": before}


@require_POST
@require_sign_in
def review(request: HttpRequest, grant_id: uuid.UUID) -> HttpResponse:
    body, now = read_posted_json(request), timezone.now()
    case = _case(grant_id, human_of(request), body, now)
    found = grant_decision_signing.review_choices(
        case, read_choices(body.get("choices")), drawn=member(body, "drawn"), now=now
    )
    return answer(
        lines=[[each.text, each.place] for each in found.lines],
        changes=found.changes,
        totals=[[each.label, each.before, each.after] for each in found.totals],
        dangerous=found.dangerous,
        drawn=found.drawn,
    )


@require_POST
@require_sign_in
def review_denial(request: HttpRequest, grant_id: uuid.UUID) -> HttpResponse:
    body, now = read_posted_json(request), timezone.now()
    case = _case(grant_id, human_of(request), body, now)
    found = grant_decision_signing.review_denial(
        case, member(body, "reason"), drawn=member(body, "drawn"), now=now
    )
    return answer(sentences=found.sentences, drawn=found.drawn)


@require_POST
@require_sign_in
def second_step(request: HttpRequest, grant_id: uuid.UUID) -> HttpResponse:
    body, now = read_posted_json(request), timezone.now()
    case = _case(grant_id, human_of(request), body, now)
    case.require_decider()
    grant_decision_signing.take_second_step(
        case,
        read_choices(body.get("choices")),
        session_key=session_key_of(request),
        drawn=member(body, "drawn"),
        actor=actor_of(request),
        now=now,
    )
    return answer(status=_("Continue"))


@require_POST
@require_sign_in
def statement(request: HttpRequest, grant_id: uuid.UUID) -> HttpResponse:
    body, now = read_posted_json(request), timezone.now()
    case = _case(grant_id, human_of(request), body, now)
    choices, decision = read_choices(body.get("choices")), member(body, "decision")
    drawn, session_key = member(body, "drawn"), session_key_of(request)
    if decision == "approve":
        case.require_decider()
        options = grant_decision_signing.begin_approval(
            case, choices, session_key=session_key, drawn=drawn, now=now
        )
    elif decision == "deny":
        options = grant_decision_signing.begin_denial(
            case, choices.get("reason", ""), session_key=session_key, drawn=drawn, now=now
        )
    else:
        raise InvalidRequestError("The decision must be approve or deny.")
    return answer(publicKey=options)


@require_POST
@require_sign_in
def decide(request: HttpRequest, grant_id: uuid.UUID) -> HttpResponse:
    body, now = read_posted_json(request), timezone.now()
    receipt = grant_decision_signing.decide(
        find_open_case(grant_id, human_of(request), now),
        session_key=session_key_of(request),
        credential=body.get("credential"),
        actor=actor_of(request),
        now=now,
    )
    fault_point("approve.before_delivery")
    return answer(status=WORDS[receipt.decision], next=f"/approvals/{grant_id}/")


def _case(grant_id: uuid.UUID, human: Human, body: dict[str, object], now: datetime) -> Case:
    """The case for a script's request. `body["drawn"]` is its page's token.

    Raises as `find_open_case`.
    """
    drawn = body.get("drawn")
    return find_open_case(grant_id, human, now, drawn=drawn if isinstance(drawn, str) else None)


@require_safe
@require_sign_in
def receipt(request: HttpRequest, grant_id: uuid.UUID) -> HttpResponse:
    human = human_of(request)
    case = find_case(grant_id, human, timezone.now())
    grant = case.grant
    found = receipt_of("approval", str(grant.pk))
    if found is None:
        raise NotFoundError("There is no receipt for this request.")
    if request.GET.get("format") == "jws":
        name = f"attachment; filename=receipt-{grant.pk}.jws"
        return HttpResponse(
            found.compact, content_type="application/jose", headers={"Content-Disposition": name}
        )
    context = {
        "grant": grant,
        "agent": grant.agent,
        "provider": grant.service_provider,
        "receipt": found,
        "decided_by": decided_by(found, human),
    }
    return render(request, "receipt.html", context | {"word": WORDS[found.decision]})
