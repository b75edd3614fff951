"""The confirmation page: one transaction above its threshold, yes or no."""

import uuid

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_POST, require_safe

from agentauth.protocol.capability import parse_action
from approvals import sentences
from approvals.services import confirmation_signing
from approvals.services.decidable_requests import decided_by, find_confirmation
from approvals.services.page_snapshot_token import drawn_token
from approvals.services.passkey_signature_flow import receipt_of
from approvals.services.setup_and_sign_in import session_key_of
from approvals.views.request_helpers import (
    answer,
    human_of,
    member,
    read_posted_json,
    require_sign_in,
)
from registry.authentication import actor_of
from registry.services.catalogues import published_catalogue, words_of
from verifier.services.confirmation_lifecycle import obstacle

WORDS = {"confirm": gettext_lazy("Confirmed"), "deny": gettext_lazy("Denied")}


@require_safe
@require_sign_in
def page(request: HttpRequest, confirmation_id: uuid.UUID) -> HttpResponse:
    human, now = human_of(request), timezone.now()
    case = find_confirmation(confirmation_id, human, now)
    row, provider = case.row, case.row.grant.service_provider
    action, words = parse_action(row.action), words_of(published_catalogue(provider))
    shown = confirmation_signing.confirmation_page(row, human, now=now, routing=case.routing)
    receipt = receipt_of("confirmation", str(row.pk))
    context = {
        "is_mine": case.is_mine,
        "decides": case.decides,
        "routed": case.who(),
        "decided_by": decided_by(receipt, human),
        "confirmation": row,
        "agent": row.grant.agent,
        "provider": provider,
        "act": sentences.act(action, provider.name, words),
        "said": sentences.act_said(words, action),
        "status": row.status_at(now),
        "obstacle": obstacle(row, now),
        "receipt": receipt,
        "warnings": shown.shown["likenesses"],
        "texts": {decision: text.splitlines() for decision, text in shown.shown["text"].items()},
        "drawn": drawn_token(shown, now=now),
    }
    return render(request, "confirmation.html", context)


@require_POST
@require_sign_in
def statement(request: HttpRequest, confirmation_id: uuid.UUID) -> HttpResponse:
    human, body, now = human_of(request), read_posted_json(request), timezone.now()
    # If a rule changed since this person saw the page, the error says that they may no longer
    # decide. Without `drawn` it would be a 404.
    drawn = body.get("drawn")
    case = find_confirmation(
        confirmation_id, human, now, drawn=drawn if isinstance(drawn, str) else None
    )
    decision = member(body, "decision")
    # The owner may always deny, even what a rule sends to others.
    if decision == "confirm":
        case.require_decider()
    options = confirmation_signing.begin_confirmation(
        row=case.row,
        human=human,
        decision=decision,
        drawn=member(body, "drawn"),
        session_key=session_key_of(request),
        now=now,
        routing=case.routing,
    )
    return answer(publicKey=options)


@require_POST
@require_sign_in
def decide(request: HttpRequest, confirmation_id: uuid.UUID) -> HttpResponse:
    human, now = human_of(request), timezone.now()
    case = find_confirmation(confirmation_id, human, now)
    receipt = confirmation_signing.finish_confirmation(
        row=case.row,
        human=human,
        session_key=session_key_of(request),
        credential=read_posted_json(request).get("credential"),
        actor=actor_of(request),
        now=now,
        routing=case.routing,
    )
    return answer(status=WORDS[receipt.decision], next=f"/confirmations/{confirmation_id}/")
