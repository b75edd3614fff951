"""Scenarios beside the API description: refusals of pages, and each proof fault at the registry."""

import json
import secrets
import time
from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.test import Client

from approvals.tests.cast import browser
from registry.models import Agent, Grant
from registry.tests.cast import PAY
from tests.contract.stage import Stage, of


def after_drawing(stage: Stage, change: Callable[[], object]) -> Any:
    """The page's answer to its button, pressed after `change`."""
    grant = stage.pending()
    drawn = stage.person.drawn(grant)
    change()
    return stage.person.statement(grant, drawn=drawn)


def rename(stage: Stage) -> None:
    Agent.objects.filter(jkt=stage.agent.jkt).update(name="Other Name")


def end(stage: Stage) -> None:
    Grant.objects.filter(agent__jkt=stage.agent.jkt).update(expires_at=stage.now)


PAGES: dict[str, Callable[[Stage], Any]] = {
    "sign_in_required": lambda _: browser().post("/settings/sessions/end-others"),
    "verification_required": lambda stage: stage.person.post("/settings/passkeys/options"),
    "csrf_failed": lambda _: Client().post("/sign-out/"),
    "confirmation_required": lambda stage: stage.person.statement(
        stage.pending(capabilities=[PAY])
    ),
    "grant_changed": lambda stage: after_drawing(stage, lambda: rename(stage)),
    "expired": lambda stage: after_drawing(stage, lambda: end(stage)),
    "invalid_assertion": lambda stage: stage.person.post(
        f"/approvals/{stage.pending().pk}/decide", {"credential": "x"}
    ),
    "invalid_state": lambda stage: stage.person.statement(stage.approved(), drawn="x"),
}


def with_proof(**changes: Any) -> Callable[[Stage], Any]:
    """A call whose proof has these changes."""

    def send(stage: Stage) -> Any:
        call = of("POST", "/v1/grants", {})
        return stage.send(call, proof=stage.agent.proof("POST", "/v1/grants", call.body, **changes))

    return send


def badly_signed(stage: Stage) -> Any:
    call = of("POST", "/v1/grants", {})
    one, other = (stage.agent.proof("POST", "/v1/grants", call.body) for _ in range(2))
    return stage.send(call, proof=f"{one.rpartition('.')[0]}.{other.rpartition('.')[2]}")


def replayed(stage: Stage) -> Any:
    call = of("POST", "/v1/grants", {})
    proof = stage.agent.proof("POST", "/v1/grants", call.body)
    stage.send(call, proof=proof)
    return stage.send(call, proof=proof)


PROOFS: dict[str, Callable[[Stage], Any]] = {
    "malformed": lambda stage: stage.send(of("POST", "/v1/grants", {}), proof="x"),
    "signature": badly_signed,
    "method": with_proof(method="GET"),
    "url": with_proof(url=f"{settings.PUBLIC_URL}/v1/tokens"),
    "iat": with_proof(iat=int(time.time()) - 3600),
    "ath": with_proof(access_token=secrets.token_urlsafe()),
    "replayed": replayed,
    "body": with_proof(body=json.dumps({"other": 1}).encode()),
}
