"""Slack and Teams get messages in their own formats, under the rules of every webhook."""

import json
from datetime import datetime
from typing import Any

import pytest

from approvals.models import Notification, NotificationChannel
from approvals.notifications.chat_webhooks import slack_message, teams_message
from approvals.notifications.delivery import send_notifications
from approvals.services.data_export import export_data
from approvals.tests.cast import Person
from approvals.tests.notifying import by_chat_room, by_webhook
from approvals.tests.webhook_receiver import webhook_receiver
from audit.models import Event
from registry.models import Grant, ServiceProvider
from registry.tests.cast import TESTER, AgentClient, pending

pytestmark = pytest.mark.django_db
WEBHOOK = "/settings/notifications/webhooks"
ALL = {"requests": "on", "confirmations": "on", "security": "on"}
HOSTILE = (
    "<!channel> & *Eve* [x](https://evil.example) <https://evil.example|pay>\n\"'\\ {{DATE(x)}}"
)
LINK = "http://localhost:8000/settings/"


@pytest.fixture
def grant(agent: AgentClient, service_provider: ServiceProvider) -> Any:
    """Returns what makes a pending request."""
    return lambda now: pending(agent, service_provider, now=now)


@pytest.mark.parametrize("kind", ["slack", "teams"])
def test_a_chat_room_gets_a_request_in_its_format(
    kind: str, grant: Any, alice: Person, now: datetime
) -> None:
    with webhook_receiver() as box:
        by_chat_room(alice.human, now, box.url, kind)
        row: Grant = grant(now)
        assert send_notifications(now=now) == 1
        [(_, headers, body)] = box.received
    text, link = (
        "A request is waiting for your decision.",
        f"http://localhost:8000/approvals/{row.pk}/",
    )
    content = json.loads(body)
    assert headers["Content-Type"] == "application/json"
    assert "webhook-signature" not in headers
    if kind == "slack":
        assert content["text"] == f"{text}\n<{link}>"
    else:
        [attachment] = content["attachments"]
        assert content["type"] == "message"
        assert attachment["contentType"] == "application/vnd.microsoft.card.adaptive"
        card = attachment["content"]
        assert card["body"][0]["inlines"] == [{"type": "TextRun", "text": text}]
        assert card["actions"][0]["url"] == link
    named = (row.agent.name, row.service_provider.name, "Alice")
    assert not [name for name in named if name in body.decode()]


def test_slack_reads_a_hostile_text_as_text() -> None:
    text = slack_message(HOSTILE, LINK)["text"]
    words, _, link = text.rpartition("\n")
    assert link == f"<{LINK}>"
    # What Slack gives a meaning: a mention or a link is in angle brackets.
    assert "<" not in words
    assert ">" not in words
    read = words.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    assert read == HOSTILE


def test_teams_reads_a_hostile_text_as_text() -> None:
    """A TextRun has no Markdown, so the whole text is in one, unchanged."""
    [attachment] = json.loads(json.dumps(teams_message(HOSTILE, LINK)))["attachments"]
    card = attachment["content"]
    assert card["body"] == [
        {"type": "RichTextBlock", "inlines": [{"type": "TextRun", "text": HOSTILE}]}
    ]
    assert card["actions"] == [{"type": "Action.OpenUrl", "title": "Open", "url": LINK}]


@pytest.mark.parametrize("kind", ["slack", "teams"])
def test_a_chat_room_is_added_without_a_key(kind: str, alice: Person, now: datetime) -> None:
    url = "https://hooks.example.org/services/T0/secret"
    page = alice.press(WEBHOOK, ALL | {"url": url, "kind": kind})
    assert page.status_code == 302
    row = NotificationChannel.objects.get()
    assert (row.kind, row.target) == (kind, url)
    shown = alice.get("/settings/").content.decode()
    assert f"{'Slack' if kind == 'slack' else 'Microsoft Teams'} at hooks.example.org" in shown
    assert "/services/T0" not in shown
    exported = json.loads("".join(export_data(human=alice.human, actor=TESTER, now=now)))
    [channel] = exported["notification_channels"]
    assert (channel["kind"], channel["target"]) == (kind, url)
    assert row.secret not in json.dumps(exported)
    assert "services/T0" not in str(list(Event.objects.values_list("data")))


@pytest.mark.parametrize("kind", ["", "email", "push", "Slack", "irc"])
def test_a_webhook_of_an_unknown_format_is_refused(kind: str, alice: Person) -> None:
    fields = ALL | {"url": "https://hooks.example.org/", "kind": kind}
    assert alice.press(WEBHOOK, fields).status_code == 400
    assert not NotificationChannel.objects.exists()


def test_SS_2_a_chat_room_at_an_inner_address_is_refused(alice: Person) -> None:
    fields = ALL | {"url": "https://10.0.0.1/", "kind": "slack"}
    assert alice.press(WEBHOOK, fields).status_code == 400


def test_a_row_that_was_pointed_to_another_chat_room_sends_nothing(
    grant: Any, alice: Person, now: datetime
) -> None:
    with webhook_receiver() as box:
        by_chat_room(alice.human, now, box.url, "slack")
        grant(now)
        NotificationChannel.objects.update(target=f"{box.url}/elsewhere")
        assert send_notifications(now=now) == 0
        assert box.received == []
    assert Notification.objects.get().error == "secret_unreadable"


def test_chat_rooms_and_signed_webhooks_share_a_limit(alice: Person, now: datetime) -> None:
    for number in range(4):
        by_webhook(alice.human, now, f"https://hooks.example.org/{number}")
    by_chat_room(alice.human, now, "https://hooks.example.org/", "teams")
    fields = ALL | {"url": "https://hooks.example.org/x", "kind": "slack"}
    assert alice.press(WEBHOOK, fields).status_code == 409
