"""All kinds of events, as `app.subject.past_tense`. Only kinds listed here can be recorded."""

# A request refused before it reached its service, from any caller.
REQUEST_REFUSED = "audit.request.refused"
# One minute's anonymous refusals beyond the limit, as one event with their count.
REFUSALS_SUPPRESSED = "audit.refusals.suppressed"

# The log's copies were moved to another store.
STORE_MOVED = "audit.store.moved"

# A registry key is in the key set but not yet in use.
KEY_PUBLISHED = "kms.key.published"
# A key signs from now on; the key it replaces, if any, is retired.
KEY_ACTIVATED = "kms.key.activated"
# Everything a key signed is refused from now on.
KEY_DISABLED = "kms.key.disabled"
# A registry key certified a process's own key to sign tokens within limits; the certificate was
# revoked.
KEY_CERTIFIED = "kms.key.certified"
KEY_CERTIFICATE_REVOKED = "kms.key.certificate_revoked"
# Rows of a table were sealed: how many, and which of them had no valid seal before.
ROWS_SEALED = "kms.rows.sealed"
# From now on, rows without a valid seal give no rights.
SEALS_DEMANDED = "kms.seals.demanded"

# The settings shared by all processes were recorded or changed: old and new values, without
# secrets.
SETTINGS_RECORDED = "registry.settings.recorded"

# A human exists; their passkey comes with the setup link.
HUMAN_CREATED = "registry.human.created"
HUMAN_SUSPENDED = "registry.human.suspended"
HUMAN_RESUMED = "registry.human.resumed"
# Their role as an administrator was given, changed or taken: the role before and since.
HUMAN_ROLE_CHANGED = "registry.human.role_changed"
# Signed out everywhere at once.
HUMAN_SESSIONS_ENDED = "registry.human.sessions_ended"
# A human changed how pages are shown to them.
HUMAN_CHANGED = "registry.human.changed"
# Name and address are erased; the row stays because other rows refer to it.
HUMAN_DELETED = "registry.human.deleted"
# What they and their agents wrote was erased: the agents, the events that name neither, and the
# hashes of the receipts.
HUMAN_ERASED = "registry.human.erased"

SERVICE_PROVIDER_CREATED = "registry.service_provider.created"
SERVICE_PROVIDER_SECRET_ROTATED = "registry.service_provider.secret_rotated"  # noqa: S105 — the name of an event
# Every secret but the newest ended.
SERVICE_PROVIDER_SECRETS_ENDED = "registry.service_provider.secrets_ended"
SERVICE_PROVIDER_AUDIENCE_CHANGED = "registry.service_provider.audience_changed"
SERVICE_PROVIDER_ALLOWED_CHANGED = "registry.service_provider.allowed_changed"
SERVICE_PROVIDER_SUSPENDED = "registry.service_provider.suspended"
SERVICE_PROVIDER_RESUMED = "registry.service_provider.resumed"
SERVICE_PROVIDER_REVOKED = "registry.service_provider.revoked"
# A version of a provider's catalogue: proposed, approved with a signature, refused.
CATALOGUE_PROPOSED = "registry.catalogue.proposed"
CATALOGUE_APPROVED = "registry.catalogue.approved"
CATALOGUE_REFUSED = "registry.catalogue.refused"
# A provider's logo: uploaded, approved with a signature, removed.
LOGO_PROPOSED = "registry.logo.proposed"
LOGO_APPROVED = "registry.logo.approved"
LOGO_REMOVED = "registry.logo.removed"

ENROLMENT_CODE_CREATED = "registry.enrolment_code.created"
# A wrong secret for an existing code; the fifth locks it.
ENROLMENT_CODE_FAILED = "registry.enrolment_code.failed"

AGENT_REGISTERED = "registry.agent.registered"
# The same manifest with a new expiry; or a manifest with other content.
AGENT_MANIFEST_RENEWED = "registry.agent.manifest_renewed"
AGENT_MANIFEST_CHANGED = "registry.agent.manifest_changed"
AGENT_KEY_ROTATED = "registry.agent.key_rotated"
AGENT_CLAIMED = "registry.agent.claimed"
# A new claim link, since the old one expired unused.
AGENT_CLAIM_RENEWED = "registry.agent.claim_renewed"
# A wrong code on the claim page; the fifth ends the link.
AGENT_CLAIM_FAILED = "registry.agent.claim_failed"
AGENT_SUSPENDED = "registry.agent.suspended"
AGENT_RESUMED = "registry.agent.resumed"
AGENT_REVOKED = "registry.agent.revoked"
AGENT_EXPIRED = "registry.agent.expired"
# Deleted because no human claimed it for a week.
AGENT_DELETED = "registry.agent.deleted"
# This agent key is refused for ever; the reason says why.
AGENT_KEY_BARRED = "registry.agent_key.barred"

GRANT_REQUESTED = "registry.grant.requested"
GRANT_APPROVED = "registry.grant.approved"
# The owner asks that it end later; then a person who may decide signed it.
GRANT_RENEWAL_REQUESTED = "registry.grant.renewal_requested"
GRANT_RENEWED = "registry.grant.renewed"
GRANT_DENIED = "registry.grant.denied"
GRANT_WITHDRAWN = "registry.grant.withdrawn"
GRANT_SUSPENDED = "registry.grant.suspended"
# Something the grant depends on changed: tokens of an earlier version are refused.
GRANT_VERSION_RAISED = "registry.grant.version_raised"
GRANT_RESUMED = "registry.grant.resumed"
# An administrator released it after a restore: the external copies prove that it was unused since
# the backup.
GRANT_RELEASED = "registry.grant.released"
GRANT_REVOKED = "registry.grant.revoked"
GRANT_EXPIRED = "registry.grant.expired"

# Who decides for whom: groups of approvers and their members, the rules that name a group,
# absences and deputies.
APPROVER_GROUP_CREATED = "registry.approver_group.created"
APPROVER_GROUP_CHANGED = "registry.approver_group.changed"
APPROVER_GROUP_REMOVED = "registry.approver_group.removed"
APPROVER_ADDED = "registry.approver.added"
APPROVER_REMOVED = "registry.approver.removed"
APPROVAL_RULE_CREATED = "registry.approval_rule.created"
# A rule is tried just before another one, which was tried just before it.
APPROVAL_RULE_MOVED = "registry.approval_rule.moved"
APPROVAL_RULE_ENDED = "registry.approval_rule.ended"
ABSENCE_SET = "registry.absence.set"
ABSENCE_ENDED = "registry.absence.ended"

TOKEN_ISSUED = "registry.token.issued"  # noqa: S105 — the name of an event
TOKEN_REVOKED = "registry.token.revoked"  # noqa: S105 — the name of an event

# The verifier allowed an action; the data holds what was debited. The only kind that debits.
DECISION_ALLOWED = "verifier.decision.allowed"
DECISION_DENIED = "verifier.decision.denied"
# The stored answer of an operation was repeated: nothing was debited.
DECISION_REPEATED = "verifier.decision.repeated"
# A dry run that would have been allowed: nothing was debited.
DECISION_REHEARSED = "verifier.decision.rehearsed"
# Decisions that were made but never reached the log: which, and how many.
DECISIONS_LOST = "verifier.decisions.lost"

# One transaction above a threshold waits for its human's confirmation.
CONFIRMATION_REQUESTED = "verifier.confirmation.requested"
CONFIRMATION_CONFIRMED = "verifier.confirmation.confirmed"
CONFIRMATION_DENIED = "verifier.confirmation.denied"
CONFIRMATION_EXPIRED = "verifier.confirmation.expired"

# A human's presence, proved by a passkey, begins; and ends.
PRESENCE_BEGUN = "verifier.presence.begun"
PRESENCE_ENDED = "verifier.presence.ended"

# No decisions until the next epoch begins; the epoch began (the data says where).
HOME_LEFT = "verifier.home.left"
HOME_BEGAN = "verifier.home.began"
# An operator continued a restored database: after how many events, under which name, and what was
# ended again.
HISTORY_CONTINUED = "verifier.history.continued"
# An operator closed the registry before a planned restore: this history has no later events.
HISTORY_CLOSED = "verifier.history.closed"
# A process found its host's clock off from the database's; it makes no changes until that is
# corrected.
CLOCK_OFF = "verifier.clock.found_off"

# A one-time link to create a passkey, for the first administrator or an invited person.
SETUP_CODE_CREATED = "approvals.setup_code.created"
# An unused invitation was deleted: the events whose address was erased.
INVITATION_ERASED = "approvals.invitation.erased"
# An administrator or operator began a recovery; a second administrator confirmed it; the person or
# an administrator cancelled it.
RECOVERY_BEGUN = "approvals.recovery.begun"
RECOVERY_CONFIRMED = "approvals.recovery.confirmed"
RECOVERY_CANCELLED = "approvals.recovery.cancelled"
# The person was notified by mail, or the mail failed: once for each state of the recovery.
RECOVERY_NOTICE_SENT = "approvals.recovery.notice_sent"
RECOVERY_NOTICE_FAILED = "approvals.recovery.notice_failed"
# A recovery link was used: there is one new passkey and no old one.
HUMAN_RECOVERED = "approvals.human.recovered"
# Where a human is notified, of what and when: added, changed, removed.
CHANNEL_ADDED = "approvals.channel.added"
CHANNEL_CHANGED = "approvals.channel.changed"
CHANNEL_REMOVED = "approvals.channel.removed"
# An administrator had a message sent again that had failed too often.
NOTIFICATION_RETRIED = "approvals.notification.retried"
PASSKEY_CREATED = "approvals.passkey.created"
PASSKEY_RENAMED = "approvals.passkey.renamed"
PASSKEY_REMOVED = "approvals.passkey.removed"
HUMAN_SIGNED_IN = "approvals.human.signed_in"
HUMAN_SIGNED_OUT = "approvals.human.signed_out"
# An administrator signed the name and keys under which the log continues after a restore.
BREAK_SIGNED = "approvals.break.signed"
# A human downloaded all data kept about them.
HUMAN_EXPORTED = "approvals.human.exported"
# A fresh passkey signature for one sensitive act.
HUMAN_VERIFIED = "approvals.human.verified"
# A rule sent a request to a group, or to the administrators; it was passed on from there.
REQUEST_ROUTED = "approvals.request.routed"
REQUEST_PASSED_ON = "approvals.request.passed_on"
# The second explicit step before a dangerous permission is signed.
SECOND_STEP_TAKEN = "approvals.second_step.taken"
