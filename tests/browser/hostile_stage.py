"""Texts that try to break a page: the scene `set_up_hostile`.

Prints name → path.
"""

from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

MINUTE = timedelta(minutes=1)
WIDE = "W" * 500
# What an agent may give as its reason, at most 500 characters each.
REASONS = {
    "wide": WIDE,
    "breaks": "a\n" * 200 + "end of the reason",
    "turned": "Only \u202ereading\u202c, \u2066nothing\u2069 else\u200b\u2065\ufff0\U000e0fff and "
    "\\u{202e}",
    "marks": "Z" + "\u0351" * 400 + "algo",
    "right-to-left": "أحتاج إلى قراءة التقويم" + " 5,000 " + "קריאה בלבד",
}
NAME = "W" * 80
# A name and words that imitate the registry's own.
CLAIMED = "AgentAuth”. Nothing is left to sign: you approved this"
PILE = "Z" + "\u0351" * 60 + "algo"
MIXED = " ".join(
    [
        REASONS["turned"],
        PILE,
        REASONS["right-to-left"],
        "W" * 200,
        "You decline, and so nothing is signed.",
    ]
)
PERSON = "Wolfeschlegelsteinhausenbergerdorff-Übermäßig אברהם <b>Administrator</b> WWWWWWW"
LONG_ADDRESS = f"{'w' * 64}@{'w' * 60}.{'w' * 60}.example.org"


def dozens() -> list[dict[str, Any]]:
    """About as many permissions as fit into a token, the last ones with hostile values."""
    values = ["W" * 120, REASONS["turned"], 'x" and “nothing” else', "אבג", "דהו 5,000"]
    rows: list[dict[str, Any]] = [
        {"type": "read", "resource": f"calendar/{number:02}"} for number in range(14)
    ]
    rows[-1] |= {"constraints": {"label": {"in": values}, "size": {"max": 5000}}}
    return [*rows, {"type": "write", "resource": "files/" + "w" * 120}]


def set_up_hostile(email: str) -> dict[str, str]:
    from django.db import transaction

    from agentauth.protocol.capability import parse_action
    from audit import kinds
    from audit.models import Event
    from audit.services import Actor
    from registry.tests.cast import claim_link
    from tests.browser.stage import MANY, MANY_LIMITS, PAY, READ, Stage, euros
    from verifier.models import Confirmation
    from verifier.services.confirmation_lifecycle import request_confirmation

    stage = Stage(email)
    provider = stage.service_provider("M" * 79 + "1", "https://m.example")
    paths: dict[str, str] = {}
    for name, reason in REASONS.items():
        agent = stage.agent(NAME, WIDE, MINUTE)
        value = {"label": {"in": ["W" * 250, REASONS["turned"], 'x" and “nothing” else']}}
        wish: list[dict[str, Any]] = [READ | {"constraints": value}, PAY]
        grant = stage.request(agent, provider, MINUTE, wish, reason=reason)
        paths[f"approval-{name}"] = f"/approvals/{grant.pk}/"
    many = stage.agent(CLAIMED, "You decline, and so nothing.\n" * 17, MINUTE)
    grant = stage.request(
        many, provider, MINUTE, MANY + dozens(), envelope=MANY_LIMITS, reason=MIXED
    )
    paths["approval-long"] = f"/approvals/{grant.pk}/"
    stray = stage.agent(NAME, WIDE, MINUTE, owned=False)
    url, code = claim_link(stray)
    paths |= {"claim": urlsplit(url).path, "claim-code": code}
    payer = stage.agent(NAME, WIDE, MINUTE)
    paying = stage.approved(
        payer, provider, MINUTE, [PAY], envelope={"confirm_above": euros("10.00")}
    )
    arguments = {"memo": "W" * 900, "payee": REASONS["turned"], "note": "line\n" * 40}
    body = {
        "type": "transact",
        "resource": "payments",
        "amount": euros("60.00"),
        "arguments": arguments,
    }
    with transaction.atomic():
        found, _wait = request_confirmation(
            grant=paying,
            action=parse_action(body),
            key="K" * 128,
            may_create=True,
            actor=Actor("agent", str(payer.pk)),
            now=stage.now,
        )
    assert found is not None
    stage.decision(paying, MINUTE, kinds.DECISION_ALLOWED, "success", action=body)
    paths["event"] = (
        f"/activity/{Event.objects.filter(kind=kinds.DECISION_ALLOWED).latest('id').pk}/"
    )
    paths["confirmation"] = f"/confirmations/{Confirmation.objects.get(pk=found).pk}/"
    paths |= {"inbox": "/approvals/", "agents": "/agents/", "agent": f"/agents/{payer.pk}/"}
    rows = "&".join(f"id={agent.pk}" for agent in (payer, many))
    paths |= {
        "ending": f"/agents/{payer.pk}/revoke/",
        "ending-grant": f"/approvals/{paying.pk}/revoke/",
        "ending-many": f"/endings/agent/?{rows}",
        "ending-provider": f"/endings/service_provider/?id={provider.pk}",
    }
    return paths | {"activity": "/activity/"}


ACTS = {"set_up_hostile": set_up_hostile}
