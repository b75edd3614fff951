"""What each kind of event means, in words that people read."""

from typing import Final

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from approvals.quotation_marks import quoted
from audit import kinds

# %(agent)s and %(at)s are filled in.
KIND_WORDS: Final = {
    kinds.REQUEST_REFUSED: gettext_lazy("A request was refused"),
    kinds.HUMAN_CREATED: gettext_lazy("The account was created"),
    kinds.HUMAN_SUSPENDED: gettext_lazy("The account was suspended"),
    kinds.HUMAN_RESUMED: gettext_lazy("The account was resumed"),
    kinds.HUMAN_ROLE_CHANGED: gettext_lazy("The role of the account was changed"),
    kinds.HUMAN_SESSIONS_ENDED: gettext_lazy("All sessions were ended"),
    kinds.HUMAN_SIGNED_IN: gettext_lazy("Signed in with a passkey"),
    kinds.HUMAN_SIGNED_OUT: gettext_lazy("Signed out"),
    kinds.HUMAN_CHANGED: gettext_lazy("Settings were changed"),
    kinds.HUMAN_RECOVERED: gettext_lazy("The account was recovered with a new passkey"),
    kinds.HUMAN_EXPORTED: gettext_lazy("Downloaded their data"),
    kinds.HUMAN_DELETED: gettext_lazy("The account was deleted"),
    kinds.HUMAN_ERASED: gettext_lazy("The texts of the account were erased"),
    kinds.HUMAN_VERIFIED: gettext_lazy("Confirmed with a passkey"),
    kinds.SETUP_CODE_CREATED: gettext_lazy("A recovery link was created for this account"),
    kinds.RECOVERY_BEGUN: gettext_lazy("Recovery of this account started"),
    kinds.RECOVERY_CONFIRMED: gettext_lazy(
        "A second administrator approved the recovery of this account"
    ),
    kinds.RECOVERY_CANCELLED: gettext_lazy("The recovery of this account was cancelled"),
    kinds.RECOVERY_NOTICE_SENT: gettext_lazy(
        "An e-mail about the recovery of this account was sent"
    ),
    kinds.RECOVERY_NOTICE_FAILED: gettext_lazy(
        "An e-mail about the recovery of this account could not be sent yet"
    ),
    kinds.PASSKEY_CREATED: gettext_lazy("A passkey was added"),
    kinds.PASSKEY_RENAMED: gettext_lazy("A passkey was renamed"),
    kinds.PASSKEY_REMOVED: gettext_lazy("A passkey was removed"),
    kinds.CHANNEL_ADDED: gettext_lazy("A notification channel was added"),
    kinds.CHANNEL_CHANGED: gettext_lazy("A notification channel was changed"),
    kinds.CHANNEL_REMOVED: gettext_lazy("A notification channel was removed"),
    kinds.NOTIFICATION_RETRIED: gettext_lazy("A failed notification was sent again"),
    kinds.SECOND_STEP_TAKEN: gettext_lazy("Continued past the warning for %(agent)s at %(at)s"),
    kinds.ENROLMENT_CODE_CREATED: gettext_lazy("An enrolment code was created"),
    kinds.ENROLMENT_CODE_FAILED: gettext_lazy("An incorrect enrolment code was entered"),
    kinds.AGENT_REGISTERED: gettext_lazy("%(agent)s registered"),
    kinds.AGENT_CLAIMED: gettext_lazy("%(agent)s was claimed"),
    kinds.AGENT_SUSPENDED: gettext_lazy("%(agent)s was suspended"),
    kinds.AGENT_RESUMED: gettext_lazy("%(agent)s was resumed"),
    kinds.AGENT_REVOKED: gettext_lazy("%(agent)s was revoked"),
    kinds.AGENT_MANIFEST_RENEWED: gettext_lazy("%(agent)s renewed its registration"),
    kinds.AGENT_MANIFEST_CHANGED: gettext_lazy("%(agent)s changed its description"),
    kinds.AGENT_KEY_ROTATED: gettext_lazy("%(agent)s changed its key"),
    kinds.AGENT_EXPIRED: gettext_lazy("%(agent)s expired"),
    kinds.GRANT_REQUESTED: gettext_lazy("%(agent)s asked for permissions at %(at)s"),
    kinds.GRANT_APPROVED: gettext_lazy("Approved what %(agent)s asked for at %(at)s"),
    kinds.GRANT_RENEWAL_REQUESTED: gettext_lazy("Asked to renew the grant of %(agent)s at %(at)s"),
    kinds.GRANT_RENEWED: gettext_lazy("Renewed the grant of %(agent)s at %(at)s"),
    kinds.GRANT_DENIED: gettext_lazy("Denied what %(agent)s asked for at %(at)s"),
    kinds.GRANT_WITHDRAWN: gettext_lazy("%(agent)s withdrew its request at %(at)s"),
    kinds.GRANT_SUSPENDED: gettext_lazy("The grant of %(agent)s at %(at)s was suspended"),
    kinds.GRANT_VERSION_RAISED: gettext_lazy("%(agent)s needs a new access token for %(at)s"),
    kinds.GRANT_RELEASED: gettext_lazy(
        "An administrator released the grant of %(agent)s at %(at)s after a restore"
    ),
    kinds.GRANT_RESUMED: gettext_lazy("The grant of %(agent)s at %(at)s was resumed"),
    kinds.GRANT_REVOKED: gettext_lazy("The grant of %(agent)s at %(at)s was revoked"),
    kinds.GRANT_EXPIRED: gettext_lazy("A request or a grant of %(agent)s at %(at)s expired"),
    kinds.APPROVER_GROUP_CREATED: gettext_lazy("A group of approvers was created"),
    kinds.APPROVER_GROUP_CHANGED: gettext_lazy("A group of approvers was changed"),
    kinds.APPROVER_GROUP_REMOVED: gettext_lazy("A group of approvers was removed"),
    kinds.APPROVER_ADDED: gettext_lazy("Added to a group of approvers"),
    kinds.APPROVER_REMOVED: gettext_lazy("Removed from a group of approvers"),
    kinds.APPROVAL_RULE_CREATED: gettext_lazy("A rule for approvals was added"),
    kinds.APPROVAL_RULE_MOVED: gettext_lazy("The order of the rules for approvals was changed"),
    kinds.APPROVAL_RULE_ENDED: gettext_lazy("A rule for approvals was ended"),
    kinds.ABSENCE_SET: gettext_lazy("An absence was set"),
    kinds.ABSENCE_ENDED: gettext_lazy("An absence was removed"),
    kinds.REQUEST_ROUTED: gettext_lazy(
        "A rule sent the request of %(agent)s at %(at)s to a group of approvers"
    ),
    kinds.REQUEST_PASSED_ON: gettext_lazy(
        "The request of %(agent)s at %(at)s was passed on to the next approvers"
    ),
    kinds.TOKEN_ISSUED: gettext_lazy("%(agent)s received an access token for %(at)s"),
    kinds.TOKEN_REVOKED: gettext_lazy("An access token of %(agent)s for %(at)s was revoked"),
    kinds.DECISION_ALLOWED: gettext_lazy("%(at)s allowed an action of %(agent)s"),
    kinds.DECISION_DENIED: gettext_lazy("%(at)s refused an action of %(agent)s"),
    kinds.DECISION_REPEATED: gettext_lazy("%(at)s answered a retry of %(agent)s as before"),
    kinds.DECISION_REHEARSED: gettext_lazy("%(at)s checked an action of %(agent)s in a dry run"),
    kinds.CONFIRMATION_REQUESTED: gettext_lazy("%(agent)s asked for a confirmation at %(at)s"),
    kinds.CONFIRMATION_CONFIRMED: gettext_lazy("Confirmed one payment of %(agent)s at %(at)s"),
    kinds.CONFIRMATION_DENIED: gettext_lazy("Denied one payment of %(agent)s at %(at)s"),
    kinds.CONFIRMATION_EXPIRED: gettext_lazy("A confirmation for %(agent)s at %(at)s expired"),
    # On an administrator's pages alone.
    kinds.SERVICE_PROVIDER_CREATED: gettext_lazy("%(at)s was created"),
    kinds.SERVICE_PROVIDER_SECRET_ROTATED: gettext_lazy("%(at)s got a new secret"),
    kinds.SERVICE_PROVIDER_SECRETS_ENDED: gettext_lazy("Secrets of %(at)s were ended"),
    kinds.SERVICE_PROVIDER_AUDIENCE_CHANGED: gettext_lazy("%(at)s moved to another URL"),
    kinds.SERVICE_PROVIDER_ALLOWED_CHANGED: gettext_lazy(
        "What agents may ask for at %(at)s was changed"
    ),
    kinds.SERVICE_PROVIDER_SUSPENDED: gettext_lazy("%(at)s was suspended"),
    kinds.SERVICE_PROVIDER_RESUMED: gettext_lazy("%(at)s was resumed"),
    kinds.SERVICE_PROVIDER_REVOKED: gettext_lazy("%(at)s was revoked"),
    kinds.LOGO_PROPOSED: gettext_lazy("A logo for %(at)s was uploaded"),
    kinds.LOGO_APPROVED: gettext_lazy("The logo of %(at)s was approved"),
    kinds.LOGO_REMOVED: gettext_lazy("A logo of %(at)s was removed"),
    kinds.KEY_PUBLISHED: gettext_lazy("A signing key was published"),
    kinds.KEY_ACTIVATED: gettext_lazy("A signing key began to sign"),
    kinds.KEY_DISABLED: gettext_lazy("A signing key was disabled"),
    kinds.KEY_CERTIFIED: gettext_lazy("A process’s key was certified"),
    kinds.KEY_CERTIFICATE_REVOKED: gettext_lazy("The certificate of a process’s key was revoked"),
    kinds.PRESENCE_BEGUN: gettext_lazy("Switched “I'm here” on"),
    kinds.PRESENCE_ENDED: gettext_lazy("Switched “I'm here” off"),
}


def kind_sentence(kind: str, *, agent: str, service: str) -> str:
    """What an event of this kind says about the agent and the service of these names.

    The kind itself stands behind it, or alone if it has no words.
    """
    if kind not in KIND_WORDS:
        return kind
    said = str(KIND_WORDS[kind])
    if "%(" in said:
        said %= {
            "agent": _("agent %(name)s") % {"name": quoted(agent)},
            "at": _("service %(name)s") % {"name": quoted(service)},
        }
    return f"{said[:1].upper()}{said[1:]} ({kind})"
