"""Texts and codes of refusals."""

import pytest

from agentauth.protocol.errors import AgentAuthError, InvalidProofError, TemporarilyUnavailableError


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (AgentAuthError("Wrong."), "error: Wrong."),
        (InvalidProofError("Wrong.", reason="malformed"), "invalid_dpop_proof/malformed: Wrong."),
    ],
)
def test_the_text_of_a_refusal_is_its_code_reason_and_description(
    error: AgentAuthError, text: str
) -> None:
    assert str(error) == text


def test_what_is_unavailable_says_so_and_keeps_further_members() -> None:
    error = TemporarilyUnavailableError(retry_after=3)
    assert error.description.endswith("Try again shortly.")
    assert error.fields == {"retry_after": 3}
