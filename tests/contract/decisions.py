"""One scenario per refusal of verify, and per error that may replace a decision in a batch."""

import json
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import pytest
import time_machine
from django.db import connection
from django.utils import timezone

from agentauth.protocol.keys import LocalSigner, PrivateKey
from registry.models import Token
from registry.services.agents import suspend_agent
from registry.services.grants import suspend_grant
from registry.services.humans import suspend_human
from registry.services.tokens import revoke_token
from tests.contract.scenarios import database_fails
from tests.contract.stage import PAYMENT, Stage, batch
from verifier.models import Confirmation
from verifier.services.confirmation_lifecycle import deny
from verifier.tests.scene import LOOK, PAY, READ, SYSTEM, Scene, key, pay, scene

Verdict = dict[str, Any]
FIFTY = {"value": "50.00", "currency": "EUR"}
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


def after(change: Callable[[Scene], object]) -> Verdict:
    """The verdict on a good token after `change`."""
    place = scene()
    token = place.token()
    change(place)
    return place.ask(LOOK, token=token)


def seconds_later(seconds: int) -> Verdict:
    place = scene()
    token, now = place.token(), timezone.now()
    with time_machine.travel(now + timedelta(seconds=seconds), tick=False):
        return place.ask(LOOK, token=token)


def with_proof(**changes: Any) -> Verdict:
    """The verdict on a proof with these changes."""
    place = scene()
    token = place.token()
    return place.ask(LOOK, token=token, proof=place.proof(token, **changes))


def badly_signed() -> Verdict:
    place = scene()
    token = place.token()
    head, payload, _ = place.proof(token).split(".")
    return place.ask(
        LOOK, token=token, proof=f"{head}.{payload}.{place.proof(token).rpartition('.')[2]}"
    )


def of_another_token() -> Verdict:
    place = scene()
    return place.ask(LOOK, proof=place.proof(place.token()))


def replayed() -> Verdict:
    place = scene()
    body = place.body(LOOK)
    place.post(body)
    return dict(json.loads(place.post(body).content))


def with_action(
    action: Mapping[str, Any], *capabilities: dict[str, Any], **envelope: Any
) -> Verdict:
    return scene(*capabilities, **envelope).ask(dict(action), idempotency_key=key())


def the_second_time(**envelope: Any) -> Verdict:
    place = scene(**envelope)
    place.ask(LOOK)
    return place.ask(LOOK)


def tomorrow_only() -> Verdict:
    tomorrow = DAYS[(timezone.now().weekday() + 2) % 7]
    return scene(
        allowed_time_windows=[{"days": [tomorrow], "start": "09:00", "end": "10:00", "zone": "UTC"}]
    ).ask(LOOK)


def denied() -> Verdict:
    place, operation = scene(PAY, confirm_above=FIFTY), key()
    asked = place.pay("60.00", operation)
    row = Confirmation.objects.get(pk=asked["confirmation_id"])
    deny(confirmation=row, human=place.human, actor=SYSTEM, now=timezone.now())
    return place.pay("60.00", operation)


def stranger() -> LocalSigner:
    return LocalSigner(PrivateKey.generate())


DECISIONS: dict[tuple[str, str | None], Callable[[], Verdict]] = {
    ("invalid_token", "malformed"): lambda: scene().ask(LOOK, token="x"),
    ("invalid_token", "unknown"): lambda: scene().ask(LOOK, token=scene().token()),
    ("invalid_token", "expired"): lambda: seconds_later(901),
    ("invalid_token", "not_yet_valid"): lambda: seconds_later(-13),
    ("invalid_token", "revoked"): lambda: after(
        lambda place: revoke_token(
            jti=Token.objects.get(grant=place.grant).jti, actor=SYSTEM, now=timezone.now()
        )
    ),
    ("invalid_token", "grant_inactive"): lambda: after(
        lambda place: suspend_grant(grant=place.grant, actor=SYSTEM, now=timezone.now())
    ),
    ("invalid_token", "agent_inactive"): lambda: after(
        lambda place: suspend_agent(agent=place.agent, actor=SYSTEM, now=timezone.now())
    ),
    ("invalid_token", "human_inactive"): lambda: after(
        lambda place: suspend_human(human=place.human, actor=SYSTEM, now=timezone.now())
    ),
    ("invalid_token", "binding"): lambda: with_proof(signer=stranger()),
    ("invalid_dpop_proof", "malformed"): lambda: scene().ask(LOOK, proof=None),
    ("invalid_dpop_proof", "signature"): badly_signed,
    ("invalid_dpop_proof", "method"): lambda: with_proof(method="GET"),
    ("invalid_dpop_proof", "url"): lambda: with_proof(url="https://elsewhere.example/"),
    ("invalid_dpop_proof", "iat"): lambda: with_proof(iat=int(timezone.now().timestamp()) - 62),
    ("invalid_dpop_proof", "ath"): of_another_token,
    ("invalid_dpop_proof", "replayed"): replayed,
    ("use_dpop_nonce", None): lambda: with_proof(nonce="nobody-gave-this"),
    ("insufficient_scope", "no_capability"): lambda: with_action(LOOK, PAY),
    ("insufficient_scope", "constraint"): lambda: with_action(pay("500.01"), PAY),
    ("outside_time_window", None): tomorrow_only,
    ("step_up_required", "human_offline"): lambda: scene(requires_human_online=True).ask(LOOK),
    ("step_up_required", "confirm_above"): lambda: with_action(
        pay("60.00"), PAY, confirm_above=FIFTY
    ),
    ("step_up_required", "confirmation_denied"): denied,
    ("envelope_exceeded", "rate"): lambda: the_second_time(max_requests_per_minute=1),
    ("envelope_exceeded", "budget"): lambda: with_action(
        pay("60.00"), PAY, budgets=[{**FIFTY, "period": "total", "zone": "UTC"}]
    ),
    ("envelope_exceeded", "max_uses"): lambda: the_second_time(max_uses=1),
}


def of_another_action(stage: Stage) -> Any:
    token = stage.token(
        stage.approved(
            capabilities=[READ, PAY | {"max_amount": {"value": "100.00", "currency": "EUR"}}]
        )
    )
    payment = {"action": PAYMENT, "idempotency_key": "order-1"}
    reading = {"action": READ, "idempotency_key": "order-1"}
    return stage.send(
        batch(stage, stage.question(token, **payment), stage.question(token, **reading))
    )


def when_the_store_is_away(stage: Stage) -> Any:
    call = batch(stage)
    with database_fails("registry_spentproof"), pytest.MonkeyPatch.context() as patch:
        # A faulty connection is closed; here it holds the transaction that every test rolls back
        # to.
        patch.setattr(connection, "close_if_unusable_or_obsolete", lambda: None)
        return stage.send(call)


BATCH: dict[str, Callable[[Stage], Any]] = {
    "invalid_request": lambda stage: stage.send(batch(stage, {}, stage.question())),
    "idempotency_mismatch": of_another_action,
    "temporarily_unavailable": when_the_store_is_away,
}
