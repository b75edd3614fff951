"""Webhooks in the format of Standard Webhooks 1.0: signed, so that a receiver can check them."""

import base64
import hashlib
import hmac
import json
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from typing import Final

from agentauth.protocol.encoding import timestamp
from agentauth.protocol.errors import InvalidRequestError
from approvals.models import Notification
from approvals.notifications.messages import link_of, sentence_of
from approvals.notifications.webhook_addresses import may_connect, parse_target
from approvals.notifications.webhook_secrets import UnreadableSecretError, decrypt

# Longer than receivers take that only store the message, and well below the claim of a row.
SECONDS: Final = 10.0
# Only the status counts.
MAX_ANSWER_BYTES: Final = 64 * 1024
What = Notification.What
TYPES: Final = {
    What.REQUEST: "request.waiting",
    What.REQUEST_ENDS: "request.ends_soon",
    What.CONFIRMATION: "confirmation.waiting",
    What.PASSKEY_ADDED: "passkey.added",
    What.PASSKEY_REMOVED: "passkey.removed",
    What.RECOVERY_BEGUN: "recovery.begun",
    What.CHANNEL_CHANGED: "channel.changed",
}


class WebhookError(Exception):
    """The message was not accepted. Its text is a code of ours, no text of the receiver."""


@dataclass(frozen=True, slots=True)
class SignedMessage:
    url: str
    headers: dict[str, str]
    body: bytes


def compose(row: Notification, *, now: datetime) -> SignedMessage:
    """The message for this row, signed now. Raises WebhookError."""
    try:
        url = parse_target(row.channel.target).url
        secret = decrypt(row.channel)
    except InvalidRequestError:
        raise WebhookError("address_refused") from None
    except UnreadableSecretError:
        raise WebhookError("secret_unreadable") from None
    content = {
        "type": TYPES[What(row.what)],
        "timestamp": timestamp(row.created_at),
        "data": {"text": sentence_of(row), "url": link_of(row)},
    }
    body = json.dumps(content).encode()
    seconds = int(now.timestamp())
    return SignedMessage(
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


def send(message: SignedMessage) -> None:
    """Post it. Only a 2xx status counts as accepted. Raises WebhookError."""
    # Imported late: httpx takes a tenth of a process's start time, and only `jobs` sends webhooks.
    from audit.checkpoints.bounded_http_post import AddressRefusedError, NoAnswerError, post

    try:
        answer = post(
            message.url,
            message.body,
            headers=message.headers,
            may_connect=may_connect,
            # A proxy would resolve the name itself, after our check.
            through_proxies=False,
            seconds=SECONDS,
            max_bytes=MAX_ANSWER_BYTES,
        )
    except AddressRefusedError:
        raise WebhookError("address_refused") from None
    except NoAnswerError as error:
        raise WebhookError(str(error)) from None
    if answer is None:
        raise WebhookError("answer_too_long")
    if not HTTPStatus.OK <= answer.status < HTTPStatus.MULTIPLE_CHOICES:
        raise WebhookError(f"http_{answer.status}")
