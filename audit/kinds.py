"""Every kind of event there is, as `app.subject.past_tense`. Each app adds its own here; nothing else is recorded."""

# A request that was refused at the edge, whoever made it.
REQUEST_REFUSED = "audit.request.refused"
# Refusals of anonymous callers beyond the limit of one minute, as one event with their count.
REFUSALS_SUPPRESSED = "audit.refusals.suppressed"

# A key of ours is in the key set and not yet in use.
KEY_PUBLISHED = "kms.key.published"
# A key signs from now on; the one it replaced, if any, is retired with it.
KEY_ACTIVATED = "kms.key.activated"
# A key is refused from now on, whatever it signed.
KEY_DISABLED = "kms.key.disabled"
