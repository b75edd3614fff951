"""Composes webhooks for Slack and Microsoft Teams. They are not signed: the address is the only
secret.
"""

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

from django.utils import translation
from django.utils.translation import gettext as _

from approvals.models import Notification, NotificationChannel
from approvals.notifications.messages import link_of, sentence_of
from approvals.notifications.posting import Outgoing, open_channel

Kind = NotificationChannel.Kind


def compose(row: Notification, *, now: datetime) -> Outgoing:
    """The message for this row.

    Raises NotAcceptedError if the address is not allowed or the channel cannot be decrypted.
    """
    # There is no key, but decrypting shows that the row's human and address were not changed.
    url, _no_key = open_channel(row.channel)
    # For `_("Open")`: `sentence_of` sets the language itself.
    with translation.override(row.channel.human.written_to_in):
        content = FORMATS[row.channel.kind](sentence_of(row), link_of(row))
    headers = {"Content-Type": "application/json", "User-Agent": "AgentAuth"}
    return Outgoing(url, headers, json.dumps(content).encode())


def slack_message(text: str, link: str) -> dict[str, Any]:
    """An incoming webhook of Slack.

    Slack interprets `<…>` as a link or a mention, so its three special characters are escaped. The
    two flags stop it from fetching a preview of the link.
    """
    return {
        "text": f"{_slack_text(text)}\n<{_slack_text(link)}>",
        "unfurl_links": False,
        "unfurl_media": False,
    }


def teams_message(text: str, link: str) -> dict[str, Any]:
    """The trigger "When a Teams webhook request is received" of a workflow: an Adaptive Card.

    The text is a TextRun, in which Teams reads no Markdown, unlike in a TextBlock.
    """
    card = {
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "type": "AdaptiveCard",
        "version": "1.4",
        "body": [{"type": "RichTextBlock", "inlines": [{"type": "TextRun", "text": text}]}],
        "actions": [{"type": "Action.OpenUrl", "title": _("Open"), "url": link}],
    }
    attachment = {
        "contentType": "application/vnd.microsoft.card.adaptive",
        "contentUrl": None,
        "content": card,
    }
    return {"type": "message", "attachments": [attachment]}


def _slack_text(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


FORMATS: Final[dict[str, Callable[[str, str], dict[str, Any]]]] = {
    Kind.SLACK: slack_message,
    Kind.TEAMS: teams_message,
}
