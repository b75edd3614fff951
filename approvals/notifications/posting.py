"""One message to an address that a person gave: a webhook, a chat room or a push service."""

from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

from agentauth.protocol.errors import InvalidRequestError
from approvals.models import NotificationChannel
from approvals.notifications.channel_addresses import may_connect, parse_target
from approvals.notifications.channel_secrets import UnreadableSecretError, decrypt

# Enough for a receiver that only stores the message, and well below the claim time of a row.
SECONDS: Final = 10.0
# The body of the response is not used, only its status.
MAX_ANSWER_BYTES: Final = 64 * 1024


class NotAcceptedError(Exception):
    """The message was not accepted. Its text is our own code, not text from the receiver."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """What to post. The address of a chat room or of a browser is a secret too."""

    url: str = field(repr=False)
    headers: dict[str, str] = field(repr=False)
    body: bytes = field(repr=False)


def open_channel(channel: NotificationChannel) -> tuple[str, bytes]:
    """The channel's address and its secret, both checked. Raises NotAcceptedError."""
    try:
        return parse_target(channel.target).url, decrypt(channel)
    except InvalidRequestError:
        raise NotAcceptedError("address_refused") from None
    except UnreadableSecretError:
        raise NotAcceptedError("secret_unreadable") from None


def send(message: Outgoing) -> None:
    """Post it. Only a 2xx status counts as accepted. Raises NotAcceptedError."""
    # Imported here: httpx takes a tenth of a process's start time, and only `jobs` send messages.
    from audit.bounded_http_post import AddressRefusedError, NoAnswerError, post

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
        raise NotAcceptedError("address_refused") from None
    except NoAnswerError as error:
        raise NotAcceptedError(str(error)) from None
    if answer is None:
        raise NotAcceptedError("answer_too_long")
    if not HTTPStatus.OK <= answer.status < HTTPStatus.MULTIPLE_CHOICES:
        raise NotAcceptedError(f"http_{answer.status}")
