"""The `kid` of a token is untrusted: it is only compared with the names of our keys."""

from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from agentauth.protocol.jose import sign_compact
from kms import backends
from registry.tests.test_register_keys import KIDS
from verifier.tests.scene import Scene, assert_refused
from verifier.tests.scene import place as place  # noqa: PLC0414 — a fixture

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize("kid", KIDS)
def test_JK_20_a_kid_is_compared_and_goes_nowhere_else(
    kid: Any, place: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reaches no query and no key service, even under a valid signature of the agent's key."""

    def opened(uri: str) -> None:
        raise AssertionError(f"a key was opened: {uri}")

    body = place.body()
    claims = {"iss": "x"}
    body["token"] = sign_compact(
        claims, place.signer, typ="at+jwt", header={"kid": kid, "jwk": place.signer.public.jwk}
    )
    monkeypatch.setattr(backends, "open_signer", opened)
    with CaptureQueriesContext(
        connection,
    ) as queries:
        answer = assert_refused(place, body)
    assert answer["error"] == "invalid_token"
    assert answer["reason"] == ("unknown" if isinstance(kid, str) else "malformed")
    if isinstance(kid, str) and len(kid) > 3:
        assert not [each for each in queries.captured_queries if kid in each["sql"]]
