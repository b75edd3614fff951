"""What the registry's answer to a token request must contain."""

import pytest

from agentauth.sdk.client_cache import token_of
from agentauth.sdk.errors import RegistryError


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"access_token": "a"},
        {"expires_in": 60},
        {"access_token": 1, "expires_in": 60},
        {"access_token": "a", "expires_in": "60"},
    ],
)
def test_an_answer_without_a_token_and_its_life_is_an_error(answer: dict[str, object]) -> None:
    with pytest.raises(RegistryError, match="has no"):
        token_of(answer, asked_at=0.0)
