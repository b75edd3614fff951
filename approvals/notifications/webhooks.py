"""Webhooks in the format of Standard Webhooks 1.0: signed, so that a receiver can check them."""

import base64
import hashlib
import hmac
import json
from datetime import datetime
from typing import Final

from agentauth.protocol.encoding import timestamp
from approvals.models import Notification
from approvals.notifications.messages import link_of, sentence_of
from approvals.notifications.posting import Outgoing, open_channel

What = Notification.What
TYPES: Final = {
    What.REQUEST: "request.waiting",
    What.REQUEST_ENDS: "request.ends_soon",
    What.GRANT_ENDS: "grant.ends_soon",
    What.CONFIRMATION: "confirmation.waiting",
    What.DECIDED: "request.decided",
    What.DECIDED_PAYMENT: "confirmation.decided",
    What.PASSKEY_ADDED: "passkey.added",
    What.PASSKEY_REMOVED: "passkey.removed",
    What.RECOVERY_BEGUN: "recovery.begun",
    What.CHANNEL_CHANGED: "channel.changed",
}


def compose(row: Notification, *, now: datetime) -> Outgoing:
    """The message for this row, signed now. Raises NotAcceptedError."""
    url, secret = open_channel(row.channel)
    content = {
        "type": TYPES[What(row.what)],
        "timestamp": timestamp(row.created_at),
        "data": {"text": sentence_of(row), "url": link_of(row)},
    }
    body = json.dumps(content).encode()
    seconds = int(now.timestamp())
    return Outgoing(
        url,
        {
            "Content-Type": "application/json",
            "User-Agent": "AgentAuth",
            # The same at each retry, so that a receiver can ignore what it has.
            "webhook-id": str(row.pk),
            "webhook-timestamp": str(seconds),
            "webhook-signature": sign(secret, message_id=str(row.pk), seconds=seconds, body=body),
        },
        body,
    )


def sign(secret: bytes, *, message_id: str, seconds: int, body: bytes) -> str:
    """The signature as Standard Webhooks 1.0 writes it: `v1,` and the HMAC-SHA256 in base64."""
    signed = f"{message_id}.{seconds}.".encode() + body
    return f"v1,{base64.b64encode(hmac.digest(secret, signed, hashlib.sha256)).decode()}"


def shown(secret: bytes) -> str:
    """The key as a receiver's library takes it."""
    return f"whsec_{base64.b64encode(secret).decode()}"
