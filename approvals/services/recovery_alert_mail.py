"""Mails a human about a recovery of their account, outside the pages an attacker may control."""

import logging
from datetime import datetime, timedelta
from smtplib import SMTPException

from django.conf import settings
from django.core.mail import EmailMessage
from django.db import transaction
from django.utils import translation
from django.utils.translation import gettext as _

from approvals import sentences
from approvals.models import Recovery
from audit import kinds
from audit.services import SYSTEM, record

# docs/operations.md names this logger.
logger = logging.getLogger("approvals.services.recovery_mail")
# Wait after the first failure, doubled with each further one. The claim of a process that died
# expires after as long.
RETRY = timedelta(minutes=2)
MAX_RETRY = timedelta(hours=6)
# Mails per run, so that a hanging mail server (EMAIL_TIMEOUT each) does not block the job for
# minutes.
BATCH = 20


class NoMailError(Exception):
    """EMAIL_HOST is not set in production."""


def send_notices(*, now: datetime) -> int:
    """Send the mails that are due. Returns how many were sent; a failed one stays due.

    At least once: if the process dies after the mail and before the commit, the mail is sent again.
    """
    due = (
        Recovery.objects.filter(notice_due_at__lte=now)
        .select_related("human")
        .order_by("notice_due_at")
    )
    return sum(_send(row, now) for row in due[:BATCH])


def mail_is_sent() -> bool:
    """Whether this process has a mail server to send to."""
    return bool(settings.EMAIL_BACKEND)


def notice_text(row: Recovery) -> tuple[str, str]:
    """Subject and body for the recovery's state. Contains no secret; its link changes nothing."""
    with translation.override(row.human.written_to_in):
        return _notice_text(row)


def _notice_text(row: Recovery) -> tuple[str, str]:
    human = row.human
    cancel = _("If you did not ask for this, sign in with one of your passkeys and cancel it here:")
    page = f"{settings.PUBLIC_URL}/recovery/"
    if row.used_at:
        lines = [
            sentences.recovery_sentence(row.used_at, human.time_zone),
            _(
                "All earlier passkeys were removed, and your agents’ grants are suspended until "
                "you sign them again."
            ),
            _(
                "If this was not you, call an administrator at once and ask them to suspend "
                "your account."
            ),
        ]
    elif row.cancelled_at:
        lines = [_("The recovery of your account was cancelled. Your passkeys stay as they are.")]
    elif row.case == Recovery.Case.STOLEN:
        decided = _("A second administrator approved it: a new passkey can now be created.")
        lines = [
            _(
                "Recovery of your suspended account was started because a passkey was "
                "reported stolen."
            ),
            decided if row.confirmed_at else _("A second administrator must decide."),
            _("If you did not ask for this, call an administrator."),
        ]
    else:
        assert row.ready_at is not None
        end = {"end": sentences.moment(row.ready_at, human.time_zone)}
        lines = [
            _("Recovery of your account was started because your passkeys were reported lost."),
            _("A second administrator ended the wait: a new passkey can be created from %(end)s.")
            % end
            if row.confirmed_at
            else _("From %(end)s on, a new passkey can replace all your passkeys.") % end,
            _(
                "Until it is created, your passkeys keep working. If you have lost them all, do "
                "nothing."
            ),
            f"{cancel}\n{page}",
        ]
    where = _("This is about your account at %(url)s.") % {"url": settings.PUBLIC_URL}
    return _("Recovery of your AgentAuth account"), "\n\n".join([*lines, where]) + "\n"


def _send(row: Recovery, now: datetime) -> bool:
    claim = now + min(RETRY * 2**row.notice_failures, MAX_RETRY)
    # Compare and swap: of several processes one sends it.
    mine = Recovery.objects.filter(pk=row.pk, notice_due_at=row.notice_due_at)
    if not mine.update(notice_due_at=claim):
        return False
    claimed = Recovery.objects.filter(pk=row.pk, notice_due_at=claim)
    try:
        _deliver(row)
    except (SMTPException, OSError, NoMailError) as error:
        # Log only the class: a server's reply repeats the address.
        reason = str(error) if isinstance(error, NoMailError) else type(error).__name__
        logger.error("The notice of recovery %s was not sent and is retried: %s.", row.pk, reason)  # noqa: TRY400
        with transaction.atomic():
            # Record only the first of consecutive failures: a month without mail must not add
            # thousands.
            if (
                claimed.update(notice_failures=min(row.notice_failures + 1, 16))
                and not row.notice_failures
            ):
                _record(kinds.RECOVERY_NOTICE_FAILED, row, now, reason="mail")
        return False
    with transaction.atomic():
        # Without effect if the recovery changed meanwhile: its new state gets a mail of its own.
        claimed.update(notice_due_at=None, notice_failures=0)
        _record(kinds.RECOVERY_NOTICE_SENT, row, now)
    return True


def _deliver(row: Recovery) -> None:
    """Send the mail. Raises SMTPException, OSError; NoMailError if no mail server is set."""
    if not mail_is_sent():
        raise NoMailError("EMAIL_HOST is not set")
    subject, body = notice_text(row)
    EmailMessage(subject, body, to=[row.human.email]).send()


def _record(kind: str, row: Recovery, now: datetime, reason: str | None = None) -> None:
    record(
        kind=kind,
        actor=SYSTEM,
        at=now,
        outcome="failed" if reason else "success",
        reason=reason,
        human_id=row.human_id,
        data={"recovery_id": str(row.pk)},
    )
