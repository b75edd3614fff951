"""A Content-Length is a number of usual size, or refused."""

import pytest
from django.test import Client


@pytest.mark.django_db
@pytest.mark.parametrize("length", ["0" * 5000, "9" * 4301, "1" * 21, "x", "-1", "²"])
def test_DJ_7_malformed_content_length_is_400_not_a_server_error(length: str) -> None:
    answer = Client(raise_request_exception=False).post(
        "/v1/verify", data=b"{}", content_type="application/json", CONTENT_LENGTH=length
    )
    assert answer.status_code == 400, answer.content
    assert answer.json()["error"] == "invalid_request"
