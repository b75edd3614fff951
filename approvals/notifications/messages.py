"""What a notification says: one generic sentence and a link to a page, which decides nothing."""

from django.conf import settings
from django.utils import translation
from django.utils.translation import gettext as _

from approvals.models import Notification

What = Notification.What
_PAGES = {
    What.REQUEST: "/approvals/{}/",
    What.REQUEST_ENDS: "/approvals/{}/",
    What.GRANT_ENDS: "/approvals/{}/",
    What.CONFIRMATION: "/confirmations/{}/",
    What.DECIDED: "/approvals/{}/",
    What.DECIDED_PAYMENT: "/confirmations/{}/",
    What.RECOVERY_BEGUN: "/recovery/",
}


def link_of(row: Notification) -> str:
    """The page to look at. It takes a sign-in, and a decision there takes a passkey."""
    return f"{settings.PUBLIC_URL}{page_of(row)}"


def page_of(row: Notification) -> str:
    """The path of that page."""
    return _PAGES.get(What(row.what), "/settings/").format(row.subject)


def sentence_of(row: Notification) -> str:
    """What waits or happened, in the language of the person, without names or amounts."""
    with translation.override(row.channel.human.written_to_in):
        return _sentence(What(row.what))


def _sentence(what: Notification.What) -> str:
    return {
        What.REQUEST: _("A request is waiting for your decision."),
        What.REQUEST_ENDS: _("A request that is waiting for your decision expires soon."),
        What.GRANT_ENDS: _("A grant that your agent uses ends within 3 days. You can renew it."),
        What.CONFIRMATION: _("A transaction is waiting for your confirmation."),
        What.DECIDED: _("A request of your agent was decided for you."),
        What.DECIDED_PAYMENT: _("A transaction of your agent was decided for you."),
        What.PASSKEY_ADDED: _("A passkey was added to your account."),
        What.PASSKEY_REMOVED: _("A passkey was removed from your account."),
        What.RECOVERY_BEGUN: _("A recovery of your account was started."),
        What.CHANNEL_CHANGED: _("Your notification settings were changed."),
    }[what]
