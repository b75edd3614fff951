"""U6: the secret of a claim, setup or recovery link is in no log line."""

import pytest
from django.test import Client

SECRET = "_MlK8Nrr0ohhncCdFuqe7Q"


@pytest.mark.django_db
@pytest.mark.parametrize(
    "path", [f"/setup/{SECRET}/finish", f"/recover/{SECRET}/finish", f"/claim/{SECRET}/statement"]
)
@pytest.mark.parametrize("origin", ["http://localhost:8000", "https://evil.example"])
def test_U6_a_refused_link_is_not_logged(
    path: str, origin: str, caplog: pytest.LogCaptureFixture
) -> None:
    for checks in (True, False):
        client = Client(enforce_csrf_checks=checks)
        answer = client.post(path, {}, content_type="application/json", headers={"Origin": origin})
        assert answer.status_code in {401, 403, 404}
    assert SECRET not in caplog.text
