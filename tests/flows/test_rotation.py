"""Signing keys rotate unnoticed while tokens are issued and verified; a disclosed key ends at once.

Half an hour passes in steps of ten seconds on a set clock. Each step issues a token over HTTP and
has it and an older one verified, by the registry and by readers that keep their copy of the key set
as long as allowed.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import httpx
import pytest
import time_machine
from django.conf import settings

from agentauth.protocol.dpop import make_proof
from agentauth.protocol.keys import PublicKey, parse_jwk
from agentauth.protocol.token import verify_token
from agentauth.sdk.errors import RefusedError
from agentauth.sdk.verifier import VerifierClient
from approvals.tests.cast import browser
from audit.services import Actor
from kms.models import Key
from kms.services import disable_key, promote_due_keys, rotate_key
from registry.tests.cast import AgentClient, basic
from tests.flows.test_ownership import Cast
from tests.flows.test_ownership import cast as cast  # noqa: PLC0414 — a fixture
from tests.flows.test_ownership import parties as parties  # noqa: PLC0414 — a fixture

pytestmark = [pytest.mark.django_db, pytest.mark.flow]

OPERATOR = Actor("system", "test")
HALF_AN_HOUR, STEP = 1800, 10
# The longest a reader may keep the key set (docs/protocol.md section 4), and this operator's
# rotation interval.
KEPT, ROTATE_EVERY = 120, 240


class Reader:
    """A service provider that checks signatures itself, with a key set `age` seconds old."""

    def __init__(self, cast: Cast, age: int) -> None:
        self.audience, self.fetched = cast.provider.audience, -age
        self.keys = self._fetch(cast.alices_agent.client)

    def check(self, token: str, at: int, client: Any) -> None:
        if at - self.fetched >= KEPT:
            self.keys, self.fetched = self._fetch(client), at
        now = int(datetime.now(UTC).timestamp())
        verify_token(
            token,
            keys=self.keys,
            expected_issuer=settings.ISSUER,
            expected_audience=self.audience,
            now=now,
        )

    def _fetch(self, client: Any) -> dict[str, PublicKey]:
        found = client.get("/.well-known/jwks.json").json()["keys"]
        return {each["kid"]: parse_jwk(each) for each in found}


def proof_of(agent: AgentClient, url: str, random: Random, **more: Any) -> str:
    iat = int(datetime.now(UTC).timestamp())
    return make_proof(
        agent.signer, method="POST", url=url, iat=iat, jti=f"{random.getrandbits(128):x}", **more
    )


def issued(cast: Cast, random: Random) -> str:
    body = f'{{"grant_id": "{cast.things[0]["grant_id"]}"}}'.encode()
    proof = proof_of(cast.alices_agent, settings.PUBLIC_URL + "/v1/tokens", random, body=body)
    answer = cast.alices_agent.call("POST", "/v1/tokens", body, proof=proof)
    assert answer.status_code == 201, answer.content
    return str(answer.json()["access_token"])


def asked(cast: Cast, token: str, random: Random) -> dict[str, Any]:
    url = cast.provider.audience + "/v1/payments"
    proof = proof_of(cast.alices_agent, url, random, access_token=token)
    body = {"token": token, "proof": proof, "method": "POST", "url": url}
    headers = basic(cast.provider, cast.secret)
    answer = cast.alices_agent.client.post(
        "/v1/verify", body, content_type="application/json", headers=headers
    )
    assert answer.status_code == 200, answer.content
    found: dict[str, Any] = answer.json()
    return found


def seconds(clock: time_machine.Traveller) -> Iterator[int]:
    for at in range(0, HALF_AN_HOUR, STEP):
        yield at
        clock.shift(STEP)


@pytest.mark.long
def test_JK_14_half_an_hour_of_rotations_fails_no_verification(cast: Cast) -> None:
    random, live, kids = Random(14), list[tuple[int, str]](), set[str]()
    start = datetime.now(UTC).replace(microsecond=0) + timedelta(minutes=1)
    # Some fetched just before the first rotation, some long before.
    readers = [Reader(cast, age) for age in range(0, KEPT, 20)]
    with time_machine.travel(start, tick=False) as clock:
        for at in seconds(clock):
            now = datetime.now(UTC)
            if at % ROTATE_EVERY == 0:
                rotate_key(purpose="token", actor=OPERATOR, now=now)
            if at % 60 == 0:
                # The job only records the switch, so its timing does not matter.
                promote_due_keys(now=now)
            live = [(made, token) for made, token in live if at - made < 895] + [
                (at, issued(cast, random))
            ]
            old = random.choice(live)[1]
            for token in {live[-1][1], live[0][1], old}:
                assert asked(cast, token, random)["valid"] is True, at
                for reader in readers:
                    reader.check(token, at, cast.alices_agent.client)
            kids |= set(readers[0].keys)
    assert (
        Key.objects.filter(purpose="token", state=Key.State.RETIRED).count()
        >= HALF_AN_HOUR // ROTATE_EVERY - 1
    )
    # The first key, and one per rotation.
    assert len(kids) == 1 + -(-HALF_AN_HOUR // ROTATE_EVERY)


def _served(request: httpx.Request) -> httpx.Response:
    """The registry behind the SDK, in this process and its transaction."""
    headers = {"Authorization": request.headers["Authorization"]}
    answer = browser().post(
        request.url.path, request.content, content_type="application/json", headers=headers
    )
    return httpx.Response(answer.status_code, content=answer.content)


def test_JK_18_a_disabled_keys_tokens_are_refused_at_once_by_the_sdk_too(cast: Cast) -> None:
    """The SDK keeps no key set: it asks the registry, so it refuses from the next call on."""
    random = Random(18)
    token = issued(cast, random)
    kid = Key.objects.get(purpose="token").kid
    transport = httpx.MockTransport(_served)
    secret = (str(cast.provider.pk), cast.secret)
    with VerifierClient(settings.PUBLIC_URL, *secret, transport=transport) as client:
        url = cast.provider.audience + "/v1/payments"

        def verify() -> bool:
            proof = proof_of(cast.alices_agent, url, random, access_token=token)
            return bool(client.verify(token=token, proof=proof, method="POST", url=url).decision_id)

        assert verify()
        disable_key(kid=kid, actor=OPERATOR, now=datetime.now(UTC), even_last=True)
        with pytest.raises(RefusedError) as refused:
            verify()
    assert (refused.value.error, refused.value.reason) == ("invalid_token", "unknown")
    published = cast.alices_agent.client.get("/.well-known/jwks.json").json()["keys"]
    assert kid not in {each["kid"] for each in published}
