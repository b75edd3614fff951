"""People are told by mail of what waits for them, once, and of nothing that was decided."""

from datetime import datetime, timedelta

import pytest
from pytest_django.fixtures import Settings

from approvals.notifications.delivery import send_notifications
from approvals.tests.cast import Person
from approvals.tests.notifying import by_mail
from approvals.tests.smtp_server import smtp_server
from registry.models import Grant, ServiceProvider
from registry.tests.cast import AgentClient, pending

pytestmark = pytest.mark.django_db
SMTP = "django.core.mail.backends.smtp.EmailBackend"
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)


@pytest.fixture
def request_(
    alice: Person, agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> Grant:
    """A pending request to alice, who is told by mail."""
    by_mail(alice.human, now)
    return pending(agent, service_provider, now=now)


def test_a_pending_request_is_mailed_once_without_names(
    request_: Grant, settings: Settings, now: datetime
) -> None:
    settings.EMAIL_BACKEND, settings.EMAIL_HOST = SMTP, "127.0.0.1"
    settings.EMAIL_USE_TLS = settings.EMAIL_USE_SSL = False
    with smtp_server() as box:
        settings.EMAIL_PORT = box.port
        assert send_notifications(now=now) == 1
        assert send_notifications(now=now + MINUTE) == 0
    [(receivers, text)] = box.mails
    assert receivers == ["alice@example.org"]
    assert "Subject: AgentAuth: A request waits for your decision\r\n" in text
    assert f"http://localhost:8000/approvals/{request_.pk}/" in text
    assert "Auto-Submitted: auto-generated" in text
    named = (request_.agent.name, request_.service_provider.name, "Alice")
    assert not [name for name in named if name in text]
