"""Errors of the SDK: a server's text is read, and never becomes a parameter of ours."""

import pytest

from agentauth.protocol.errors import SlowDownError
from agentauth.sdk.errors import RefusedError, RegistryError, error_from
from agentauth.sdk.verifier import Allowed


@pytest.mark.parametrize(
    ("code", "kind"), [("slow_down", SlowDownError), ("new_code", RegistryError)]
)
def test_a_member_named_like_a_parameter_is_left_out(code: str, kind: type[Exception]) -> None:
    body = {"error": code, "error_description": "Wait.", "retry_after": 5}
    strange = {"description": "x", "status": "y", "self": "z"}
    found = error_from(429, body | strange)
    assert type(found) is kind
    assert (found.description, found.fields["retry_after"]) == ("Wait.", 5)
    assert not {"description", "self"} & found.fields.keys()


@pytest.mark.parametrize(
    ("value", "seconds"), [(5, 5), (0, 0), (True, None), ("5", None), (None, None)]
)
def test_the_wait_of_a_refusal_is_an_integer(value: object, seconds: int | None) -> None:
    assert RefusedError("envelope_exceeded", "rate", {"retry_after": value}).retry_after == seconds


@pytest.mark.parametrize(
    ("value", "nonce"),
    [("n", "n"), (1, None), (None, None), ("n\r\nX: y", None), ("n" * 513, None)],
)
def test_the_nonce_of_an_answer_fits_into_a_header(value: object, nonce: str | None) -> None:
    assert RefusedError("use_dpop_nonce", None, {"nonce": value}).nonce == nonce
    assert Allowed.of({"valid": True, "nonce": value}).nonce == nonce
