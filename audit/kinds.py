"""Every kind of event there is, as `app.subject.past_tense`. Each app adds its own here; nothing else is recorded."""

# A request that was refused at the edge, whoever made it.
REQUEST_REFUSED = "audit.request.refused"
# Refusals of anonymous callers beyond the limit of one minute, as one event with their count.
REFUSALS_SUPPRESSED = "audit.refusals.suppressed"

# The log's copies were moved to another store.
STORE_MOVED = "audit.store.moved"

# A key of ours is in the key set and not yet in use.
KEY_PUBLISHED = "kms.key.published"
# A key signs from now on; the one it replaced, if any, is retired with it.
KEY_ACTIVATED = "kms.key.activated"
# A key is refused from now on, whatever it signed.
KEY_DISABLED = "kms.key.disabled"
# A key of ours lets a key that one process holds sign tokens, within limits; and it does so no more.
KEY_CERTIFIED = "kms.key.certified"
KEY_CERTIFICATE_REVOKED = "kms.key.certificate_revoked"
# Rows of a table got a seal: how many, and which of them had no good one before.
ROWS_SEALED = "kms.rows.sealed"
# From here on, rows that no service of ours wrote give nothing.
SEALS_DEMANDED = "kms.seals.demanded"

# The settings that all processes share were recorded, or changed: which, from what, to what. No secret is in it.
SETTINGS_RECORDED = "registry.settings.recorded"

# A human exists; their passkey comes with the setup link.
HUMAN_CREATED = "registry.human.created"
HUMAN_SUSPENDED = "registry.human.suspended"
HUMAN_RESUMED = "registry.human.resumed"
# Signed out everywhere at once.
HUMAN_SESSIONS_ENDED = "registry.human.sessions_ended"
# A human changed how pages show things to them.
HUMAN_CHANGED = "registry.human.changed"
# Gone for good: name and address are erased, the row stays for what refers to it.
HUMAN_DELETED = "registry.human.deleted"
# What they and their agents wrote was erased: of which agents, of which events that name neither, and the receipts' hashes.
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

ENROLMENT_CODE_CREATED = "registry.enrolment_code.created"
# A wrong secret for an existing code; the fifth locks it.
ENROLMENT_CODE_FAILED = "registry.enrolment_code.failed"

AGENT_REGISTERED = "registry.agent.registered"
# The same manifest with a new life; and one that says something else.
AGENT_MANIFEST_RENEWED = "registry.agent.manifest_renewed"
AGENT_MANIFEST_CHANGED = "registry.agent.manifest_changed"
AGENT_KEY_ROTATED = "registry.agent.key_rotated"
AGENT_CLAIMED = "registry.agent.claimed"
# A new claim link, since the old one ended unused.
AGENT_CLAIM_RENEWED = "registry.agent.claim_renewed"
# A wrong code on the claim page; the fifth ends the link.
AGENT_CLAIM_FAILED = "registry.agent.claim_failed"
AGENT_SUSPENDED = "registry.agent.suspended"
AGENT_RESUMED = "registry.agent.resumed"
AGENT_REVOKED = "registry.agent.revoked"
AGENT_EXPIRED = "registry.agent.expired"
# Nobody claimed it for a week.
AGENT_DELETED = "registry.agent.deleted"
# This agent key is refused for ever; the reason says why.
AGENT_KEY_BARRED = "registry.agent_key.barred"

GRANT_REQUESTED = "registry.grant.requested"
GRANT_APPROVED = "registry.grant.approved"
GRANT_DENIED = "registry.grant.denied"
GRANT_WITHDRAWN = "registry.grant.withdrawn"
GRANT_SUSPENDED = "registry.grant.suspended"
# What it rests on changed: tokens of an earlier version are refused.
GRANT_VERSION_RAISED = "registry.grant.version_raised"
GRANT_RESUMED = "registry.grant.resumed"
# An administrator released it after a restore: the copies outside prove that it was not used since the backup.
GRANT_RELEASED = "registry.grant.released"
GRANT_REVOKED = "registry.grant.revoked"
GRANT_EXPIRED = "registry.grant.expired"

TOKEN_ISSUED = "registry.token.issued"  # noqa: S105 — the name of an event
TOKEN_REVOKED = "registry.token.revoked"  # noqa: S105 — the name of an event

# The verifier let an action pass: what it debited stands in the data. The only kind that debits.
DECISION_ALLOWED = "verifier.decision.allowed"
DECISION_DENIED = "verifier.decision.denied"
# The stored answer of an operation, given again: nothing was debited.
DECISION_REPEATED = "verifier.decision.repeated"
# A dry run that would have passed: nothing was debited.
DECISION_REHEARSED = "verifier.decision.rehearsed"
# Decisions that were made and never reached the log: which of them, and how many.
DECISIONS_LOST = "verifier.decisions.lost"

# One transaction above a threshold waits for its human.
CONFIRMATION_REQUESTED = "verifier.confirmation.requested"
CONFIRMATION_CONFIRMED = "verifier.confirmation.confirmed"
CONFIRMATION_DENIED = "verifier.confirmation.denied"
CONFIRMATION_EXPIRED = "verifier.confirmation.expired"

# A human looks on from now on, proved by a passkey; and no longer.
PRESENCE_BEGUN = "verifier.presence.begun"
PRESENCE_ENDED = "verifier.presence.ended"

# Nobody decides until the next epoch begins; and it began, where the data says.
HOME_LEFT = "verifier.home.left"
HOME_BEGAN = "verifier.home.began"
# The database was set back and an operator continued: after how many events, under which name, and what ended again.
HISTORY_CONTINUED = "verifier.history.continued"
# An operator closed the registry before a planned restore: nothing of this history follows.
HISTORY_CLOSED = "verifier.history.closed"
# A process found the clock of its host off from the database's: it changes nothing until that is right again.
CLOCK_OFF = "verifier.clock.found_off"

# A one-time link that ends in a passkey: for the first admin, or for somebody invited.
SETUP_CODE_CREATED = "approvals.setup_code.created"
# An invitation that was not used was forgotten: of which events the address was erased.
INVITATION_ERASED = "approvals.invitation.erased"
# An administrator or operator began a recovery; a second administrator decided; the person or an administrator ended it.
RECOVERY_BEGUN = "approvals.recovery.begun"
RECOVERY_CONFIRMED = "approvals.recovery.confirmed"
RECOVERY_CANCELLED = "approvals.recovery.cancelled"
# The person was told of it by mail, or could not be: once for each state of the recovery.
RECOVERY_NOTICE_SENT = "approvals.recovery.notice_sent"
RECOVERY_NOTICE_FAILED = "approvals.recovery.notice_failed"
# A recovery link was used: there is one new passkey and no old one.
HUMAN_RECOVERED = "approvals.human.recovered"
PASSKEY_CREATED = "approvals.passkey.created"
PASSKEY_REMOVED = "approvals.passkey.removed"
HUMAN_SIGNED_IN = "approvals.human.signed_in"
HUMAN_SIGNED_OUT = "approvals.human.signed_out"
# An administrator signed the name and keys under which the log continues after a restore.
BREAK_SIGNED = "approvals.break.signed"
# A human downloaded all that is kept about them.
HUMAN_EXPORTED = "approvals.human.exported"
# A passkey signature for one sensitive act, made just before it.
HUMAN_VERIFIED = "approvals.human.verified"
# The second explicit step before a dangerous permission is signed.
SECOND_STEP_TAKEN = "approvals.second_step.taken"
