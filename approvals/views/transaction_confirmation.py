"""The confirmation page: one transaction above its threshold, yes or no."""

import uuid

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.views.decorators.http import require_POST, require_safe

from agentauth.protocol.capability import parse_action
from approvals import sentences
from approvals.services import confirmations
from approvals.services.page_token import drawn_token
from approvals.services.setup_and_sign_in import session_key_of
from approvals.services.signed_acts import receipt_of
from approvals.views.page_requests import (
    answer,
    human_of,
    member,
    read_posted_json,
    require_sign_in,
)
from registry.authentication import actor_of
from verifier.services.confirmation_lifecycle import find_for_human, obstacle

WORDS = {"confirm": "Confirmed", "deny": "Denied"}


@require_safe
@require_sign_in
def page(request: HttpRequest, confirmation_id: uuid.UUID) -> HttpResponse:
    row = find_for_human(confirmation_id, human_of(request))
    now, provider = timezone.now(), row.grant.service_provider
    shown = confirmations.confirmation_page(row, human_of(request), now=timezone.now())
    context = {
        "confirmation": row,
        "agent": row.grant.agent,
        "provider": provider,
        "act": sentences.act(parse_action(row.action), provider.name),
        "status": row.status_at(now),
        "obstacle": obstacle(row, now),
        "receipt": receipt_of("confirmation", str(row.pk)),
        "warnings": shown.shown["likenesses"],
        "texts": {decision: text.splitlines() for decision, text in shown.shown["text"].items()},
        "drawn": drawn_token(shown, now=now),
    }
    return render(request, "confirmation.html", context)


@require_POST
@require_sign_in
def statement(request: HttpRequest, confirmation_id: uuid.UUID) -> HttpResponse:
    human, body = human_of(request), read_posted_json(request)
    options = confirmations.begin_confirmation(
        row=find_for_human(confirmation_id, human),
        human=human,
        decision=member(body, "decision"),
        drawn=member(body, "drawn"),
        session_key=session_key_of(request),
        now=timezone.now(),
    )
    return answer(publicKey=options)


@require_POST
@require_sign_in
def decide(request: HttpRequest, confirmation_id: uuid.UUID) -> HttpResponse:
    human = human_of(request)
    receipt = confirmations.finish_confirmation(
        row=find_for_human(confirmation_id, human),
        human=human,
        session_key=session_key_of(request),
        credential=read_posted_json(request).get("credential"),
        actor=actor_of(request),
        now=timezone.now(),
    )
    return answer(status=WORDS[receipt.decision], next=f"/confirmations/{confirmation_id}/")
