"""What service providers ask, and what a verification creates or ends."""

from typing import Any
from unittest.mock import patch

from django.test import override_settings

from audit import kinds
from registry.tests.cast import READ_CALENDAR
from registry.tests.describing import WORDS
from tests.acts.world import Act, World, act, task
from verifier.models import Confirmation
from verifier.services import decision_stream_drain
from verifier.tests.streams import OneStream, decided, encoded

DENIED = (kinds.DECISION_DENIED, kinds.CONFIRMATION_REQUESTED)


@act("POST v1/verify", kinds.DECISION_ALLOWED)
def an_act_is_allowed(world: World) -> Act:
    body = world.payment("5.00", "k")
    return lambda: world.ask(body)


@act("POST v1/verify", kinds.DECISION_REPEATED)
def an_operation_is_repeated(world: World) -> Act:
    world.ask(world.payment("5.00", "k"))
    body = world.payment("5.00", "k")
    return lambda: world.ask(body)


@act("POST v1/verify")
def a_lost_answer_is_given_again(world: World) -> Act:
    body = world.payment("5.00", "k")
    world.ask(body, **{"Idempotency-Key": "mine"})
    return lambda: world.ask(body, **{"Idempotency-Key": "mine"})


@act("POST v1/verify", kinds.DECISION_REHEARSED)
def an_act_is_tried_out(world: World) -> Act:
    body = world.payment("5.00", "k", dry_run=True)
    return lambda: world.ask(body)


@act("POST v1/verify", kinds.DECISION_DENIED)
def an_act_beyond_the_grant_is_refused(world: World) -> Act:
    body = _beyond(world)
    return lambda: world.ask(body)


def _beyond(world: World) -> dict[str, Any]:
    """A question about something that was not granted.

    Not the first question: that one creates the row on which decisions of a grant queue.
    """
    files = {"type": "write", "resource": "files"}
    world.ask(world.question(world.token, files))
    return world.question(world.token, files)


@act("POST v1/verify", kinds.DECISION_DENIED)
def a_replayed_proof_is_refused(world: World) -> Act:
    body = world.question(world.token, READ_CALENDAR)
    world.ask(body)
    return lambda: world.ask(body)


@act("POST v1/verify", kinds.DECISION_DENIED)
def a_forged_token_is_refused(world: World) -> Act:
    body = world.question(world.token) | {"token": "a.b.c"}
    return lambda: world.ask(body)


@act("POST v1/verify", edge=(kinds.REQUEST_REFUSED,))
def a_question_that_is_none_is_refused(world: World) -> Act:
    assert world.provider
    return lambda: world.ask({})


@act("POST v1/verify", kinds.DECISION_DENIED)
def another_act_under_the_same_name_is_refused(world: World) -> Act:
    world.ask(world.payment("5.00", "k"))
    body = world.payment("6.00", "k")
    return lambda: world.ask(body)


@act("POST v1/verify", *DENIED)
def a_large_payment_waits_for_its_human(world: World) -> Act:
    body = world.payment("60.00", "k")
    return lambda: world.ask(body)


@act("POST v1/verify", kinds.DECISION_DENIED)
def a_payment_that_waits_is_asked_about_again(world: World) -> Act:
    world.confirmation()
    body = world.payment("60.00", "above")
    return lambda: world.ask(body)


@act("POST v1/verify", *DENIED, kinds.CONFIRMATION_EXPIRED)
def a_payment_takes_the_place_of_one_that_waited_too_long(world: World) -> Act:
    world.confirmation()
    Confirmation.objects.update(expires_at=world.past())
    body = world.payment("60.00", "another")
    return lambda: world.ask(body)


@act("POST v1/verify", kinds.DECISION_ALLOWED)
def a_confirmed_payment_uses_its_confirmation(world: World) -> Act:
    row = world.confirmation()
    world.signed(world.alice, f"/confirmations/{row.pk}/", {"decision": "confirm"})()
    body = world.payment("60.00", "above")
    return lambda: world.ask(body)


@act("POST v1/verify", kinds.AGENT_KEY_BARRED, kinds.AGENT_REVOKED, edge=(kinds.DECISION_DENIED,))
def a_proof_shows_the_private_half_of_its_key(world: World) -> Act:
    body = world.question(world.token, proof=world.agent.disclosing("dpop+jwt"))
    return lambda: world.ask(body)


@act("POST v1/verify/batch", kinds.DECISION_ALLOWED)
def one_of_a_batch_is_allowed(world: World) -> Act:
    body = {"requests": [world.payment("5.00", "k")]}
    return lambda: world.ask(body, "/v1/verify/batch")


@act("POST v1/verify/batch", kinds.DECISION_DENIED)
def one_of_a_batch_is_refused(world: World) -> Act:
    body = {"requests": [_beyond(world)]}
    return lambda: world.ask(body, "/v1/verify/batch")


@act("POST v1/verify/batch", kinds.REQUEST_REFUSED)
def one_of_a_batch_is_no_question(world: World) -> Act:
    assert world.provider
    return lambda: world.ask({"requests": [{}]}, "/v1/verify/batch")


@act("POST v1/introspect")
def a_token_is_looked_at(world: World) -> Act:
    token = world.token
    return lambda: world.post_token("/v1/introspect", token)


@act("POST v1/revoke", kinds.TOKEN_REVOKED)
def a_service_provider_revokes_a_token(world: World) -> Act:
    token = world.token
    return lambda: world.post_token("/v1/revoke", token)


@act("POST v1/revoke")
def a_revoked_token_is_revoked_again(world: World) -> Act:
    token = world.token
    world.post_token("/v1/revoke", token)
    return lambda: world.post_token("/v1/revoke", token)


@act("POST v1/revoke", kinds.REQUEST_REFUSED)
def what_is_no_token_is_not_revoked(world: World) -> Act:
    assert world.provider
    return lambda: world.post_token("/v1/revoke", "a.b.c")


@act("POST v1/catalogue", kinds.CATALOGUE_PROPOSED)
def a_service_provider_proposes_a_catalogue(world: World) -> Act:
    assert world.provider
    return lambda: world.ask({"catalogue": WORDS}, "/v1/catalogue")


@act("POST v1/catalogue")
def a_catalogue_is_proposed_again(world: World) -> Act:
    world.ask({"catalogue": WORDS}, "/v1/catalogue")
    return lambda: world.ask({"catalogue": WORDS}, "/v1/catalogue")


@act("task verifier.expire_everything", kinds.CONFIRMATION_EXPIRED)
def a_confirmation_waits_too_long(world: World) -> Act:
    world.confirmation()
    Confirmation.objects.update(expires_at=world.past())
    return task("verifier.expire_everything")


@act("task verifier.drain_redis", kinds.DECISION_ALLOWED)
def a_decision_is_taken_over_from_redis(world: World) -> Act:
    return _drained(encoded(decided(world.grant)))


@act("task verifier.drain_redis", kinds.DECISIONS_LOST)
def a_decision_in_redis_cannot_be_read(world: World) -> Act:
    return _drained(b"{")


def _drained(base: bytes) -> Act:
    name = "verifier.drain_redis"

    def run() -> Any:
        with (
            override_settings(REDIS_URL="redis://localhost"),
            patch.object(decision_stream_drain, "sync_client", lambda: OneStream(base)),
        ):
            return task(name)()

    return run
