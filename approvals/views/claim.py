"""The claim page: a human claims an agent with the code it shows and a passkey."""

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST, require_safe

from agentauth.protocol.identifiers import parse_id
from approvals.services import agent_claim_signing
from approvals.services.page_snapshot_token import drawn_token
from approvals.services.setup_and_sign_in import session_key_of
from approvals.views.grants_in_words import describe_kinds
from approvals.views.request_helpers import (
    answer,
    human_of,
    member,
    read_posted_json,
    require_sign_in,
)
from registry.authentication import actor_of
from registry.services.agent_claims import find_claim


@require_safe
@require_sign_in
def page(request: HttpRequest, secret: str) -> HttpResponse:
    now = timezone.now()
    agent = find_claim(secret, now=now)
    drawn_page = agent_claim_signing.claim_page(agent, human_of(request), now=now)
    context = {
        "agent": agent,
        "grant": _grant(request),
        "kinds": describe_kinds(agent),
        "warnings": drawn_page.shown["likenesses"],
        "lines": drawn_page.shown["text"].splitlines(),
        "drawn": drawn_token(drawn_page, now=now),
    }
    return render(request, "claim.html", context)


@require_POST
@require_sign_in
def statement(request: HttpRequest, secret: str) -> HttpResponse:
    now, human, body = timezone.now(), human_of(request), read_posted_json(request)
    options = agent_claim_signing.begin_claim(
        agent=find_claim(secret, now=now),
        human=human,
        code=member(body, "code"),
        drawn=member(body, "drawn"),
        session_key=session_key_of(request),
        actor=actor_of(request),
        now=now,
    )
    return answer(publicKey=options)


@require_POST
@require_sign_in
def decide(request: HttpRequest, secret: str) -> HttpResponse:
    now, human = timezone.now(), human_of(request)
    # `owner`: a double click or a retry finds the agent already claimed and gets the first answer.
    agent = find_claim(secret, now=now, owner=human)
    agent_claim_signing.finish_claim(
        agent=agent,
        human=human,
        session_key=session_key_of(request),
        credential=read_posted_json(request).get("credential"),
        actor=actor_of(request),
        now=now,
    )
    grant = _grant(request)
    return answer(
        status=_("Claimed"),
        next=f"/approvals/{grant}/?claimed=1" if grant else f"/agents/{agent.pk}/?claimed=1",
    )


def _grant(request: HttpRequest) -> str:
    """The request to continue with. Only its shape is checked here: its page checks the rest."""
    try:
        return str(parse_id(request.GET.get("grant", "")))
    except ValueError:
        return ""
