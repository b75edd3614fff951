"""Mails that say that something waits or happened, and where to look. No names, no amounts."""

from smtplib import SMTPException

from django.conf import settings
from django.core.mail import EmailMessage
from django.utils import translation
from django.utils.translation import gettext as _

from approvals.models import Notification
from approvals.notifications.messages import link_of, sentence_of


class MailError(Exception):
    """The mail was not sent. Its text is a code of ours: a server's reply repeats the address."""


def compose(row: Notification) -> EmailMessage:
    """The mail for this row. Only the address comes from a person; headers have fixed words."""
    with translation.override(row.channel.human.written_to_in):
        return _compose(row)


def _compose(row: Notification) -> EmailMessage:
    text = [
        sentence_of(row),
        link_of(row),
        _("Opening the link does not decide anything."),
        _("You receive this because of your notification settings: %(url)s")
        % {"url": f"{settings.PUBLIC_URL}/settings/#notifications"},
    ]
    return EmailMessage(
        # Without its full stop.
        f"AgentAuth: {sentence_of(row)[:-1]}",
        "\n\n".join(text) + "\n",
        to=[row.channel.human.email],
        headers={
            # A mail that is sent again has the same id, so that a mailbox can show it once.
            "Message-ID": f"<{row.pk}@{settings.RP_ID}>",
            # Holiday replies and the like do not answer it (RFC 3834).
            "Auto-Submitted": "auto-generated",
        },
    )


def send(message: EmailMessage) -> None:
    """Hand the mail to EMAIL_HOST. Raises MailError."""
    if not settings.EMAIL_BACKEND:
        raise MailError("no_mail_server")
    try:
        message.send()
    except (SMTPException, OSError, ValueError) as error:
        # ValueError: an address that cannot be a header.
        raise MailError(type(error).__name__) from None
