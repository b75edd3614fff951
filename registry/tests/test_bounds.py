"""A value of the maximum length is accepted; one character more is refused."""

import pytest

from agentauth.protocol.errors import InvalidRequestError
from registry.services.humans import check_email
from registry.services.service_providers import check_audience


def test_an_audience_has_up_to_255_characters() -> None:
    longest = "https://sp.example/".ljust(255, "x")
    check_audience(longest)
    with pytest.raises(InvalidRequestError):
        check_audience(longest + "x")


def test_an_e_mail_address_has_up_to_254_characters() -> None:
    check_email("x" * 242 + "@example.org")
    with pytest.raises(InvalidRequestError):
        check_email("x" * 243 + "@example.org")
