"""Models: passkeys, setup codes, recoveries, challenges, receipts and notifications."""

from datetime import datetime
from typing import Self

from django.conf import settings
from django.db import models
from django.utils import timezone

from audit.new_ids import new_id
from kms.row_seals import Sealed
from registry.roles import Role, role_in


class Passkey(Sealed):
    """A human's public key credential. Receipts hold their own copy, so removal deletes the row."""

    SEALED = ("id", "human_id", "credential_id", "public_key")

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    human = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+")
    # Unique across all humans: a known id must not be registered again (WebAuthn L3 section 7.1).
    credential_id = models.BinaryField(max_length=1023, unique=True)
    # COSE_Key as attested.
    public_key = models.BinaryField(max_length=2048)
    # Random, one per human and the same on all their passkeys, so it reveals nothing about them.
    user_handle = models.BinaryField(max_length=64)
    sign_count = models.BigIntegerField()
    name = models.CharField(max_length=80)
    aaguid = models.CharField(max_length=36, blank=True)
    transports = models.JSONField(default=list)
    # Whether it may be synced (backup-eligible). Fixed at creation, so a signature that says
    # otherwise is refused. Null for passkeys from before release 2 until their next signature.
    backup_eligible = models.BooleanField(null=True)
    # Whether it is synced, according to its latest signature.
    backed_up = models.BooleanField(default=False)
    created_at = models.DateTimeField()
    last_used_at = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return self.name

    @property
    def expected_backup_eligible(self) -> bool | None:
        """The flag its next signature must carry; None if either will do.

        A passkey that was once synced must be backup-eligible, even if that was not recorded then.
        """
        return True if self.backup_eligible is None and self.backed_up else self.backup_eligible


class SetupCode(Sealed):
    """A one-time link that creates a passkey. Only the code's digest is kept.

    Using it removes the seal, so that the row cannot be made usable again.
    """

    SEALED = ("id", "kind", "digest", "email", "is_staff", "admin_role", "expires_at")
    SEALED_IF_SET = frozenset({"admin_role"})

    class Kind(models.TextChoices):
        FIRST_ADMIN = "first_admin"
        INVITATION = "invitation"
        # Made only by releases before 3, whose links worked without a wait. Refused: see Recovery.
        RECOVERY = "recovery"

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    kind = models.CharField(max_length=16, choices=Kind)
    digest = models.BinaryField(max_length=32, unique=True)
    email = models.EmailField(blank=True)
    # The role of the person who uses it, in the columns of `Human`.
    is_staff = models.BooleanField(default=False)
    admin_role = models.CharField(max_length=16, null=True)  # noqa: DJ001 — as in `Human`
    created_at = models.DateTimeField()
    expires_at = models.DateTimeField()
    used_at = models.DateTimeField(null=True)
    # The human who was created with it.
    human = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, related_name="+"
    )

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=models.Q(kind__in=["first_admin", "invitation", "recovery"]),
                name="setup_code_kind",
            )
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.created_at:%Y-%m-%d %H:%M}"

    @property
    def named_role(self) -> Role | None:
        """The role that the person gets. Check the seal before you give this role."""
        return role_in(is_staff=self.is_staff, admin_role=self.admin_role)

    @classmethod
    def giving(cls) -> models.QuerySet[Self]:
        return super().giving().filter(used_at=None, expires_at__gt=timezone.now())


class HumanSession(models.Model):
    """Whose a session is. Its browser, address and times are in the session's own data.

    Not a foreign key to the session: release 4 deletes sessions and does not know this table.
    """

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    human = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+")
    # As in the session's row: a digest (approvals/sessions.py).
    session_key = models.CharField(max_length=40, unique=True)

    def __str__(self) -> str:
        return str(self.pk)


class RecoveryQuerySet(models.QuerySet["Recovery"]):
    def open(self, now: datetime) -> "RecoveryQuerySet":
        """Not used, not cancelled and not expired."""
        return self.filter(used_at=None, cancelled_at=None, expires_at__gt=now)


class Recovery(Sealed):
    """The process by which a human gets one new passkey in place of all others.

    Its state follows from these columns and the time. Use or cancellation ends its seal.
    """

    SEALED = (
        *("id", "human_id", "case", "begun_by_id", "confirmed_by_id", "ready_at", "expires_at"),
        *("link_digest", "link_expires_at"),
    )

    class Case(models.TextChoices):
        # The old passkeys work until the new one is created, so that the human can cancel with one.
        LOST = "lost"
        # The account is suspended, and a second administrator decides.
        STOLEN = "stolen"

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    human = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+")
    case = models.CharField(max_length=8, choices=Case)
    # The administrator who started it. Null if an operator did, with a command: the audit event
    # names the operator.
    begun_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, null=True, related_name="+"
    )
    begun_at = models.DateTimeField()
    # The second administrator.
    confirmed_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, null=True, related_name="+"
    )
    confirmed_at = models.DateTimeField(null=True)
    # When a link can first be made. Lost: after the wait, or at once if a second administrator
    # confirms. Stolen: null until a second administrator confirms.
    ready_at = models.DateTimeField(null=True)
    expires_at = models.DateTimeField()
    cancelled_at = models.DateTimeField(null=True)
    used_at = models.DateTimeField(null=True)
    # SHA-256 of the newest link's code, and when that link expires.
    link_digest = models.BinaryField(max_length=32, unique=True, null=True)
    link_expires_at = models.DateTimeField(null=True)
    # When to send, or send again, the mail about its state; null once it was sent.
    notice_due_at = models.DateTimeField(null=True)
    # Consecutive failures to send that mail.
    notice_failures = models.PositiveSmallIntegerField(default=0)

    objects = RecoveryQuerySet.as_manager()

    class Meta:
        indexes = [models.Index(fields=["notice_due_at"], name="recovery_notice_due")]
        constraints = [
            models.UniqueConstraint(
                fields=["human"],
                condition=models.Q(used_at=None, cancelled_at=None),
                name="recovery_one_open",
            ),
            models.CheckConstraint(
                condition=models.Q(case="lost")
                | models.Q(ready_at=None)
                | ~models.Q(confirmed_at=None),
                name="recovery_stolen_is_confirmed",
            ),
            models.CheckConstraint(
                condition=models.Q(confirmed_by=None)
                | models.Q(begun_by=None)
                | ~models.Q(confirmed_by=models.F("begun_by")),
                name="recovery_second_is_another",
            ),
            models.CheckConstraint(
                condition=models.Q(used_at=None) | ~models.Q(ready_at=None),
                name="recovery_used_was_ready",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.case} {self.begun_at:%Y-%m-%d %H:%M}"

    @classmethod
    def giving(cls) -> models.QuerySet[Self]:
        return (
            super().giving().filter(used_at=None, cancelled_at=None, expires_at__gt=timezone.now())
        )


class ChallengeQuerySet(models.QuerySet["Challenge"]):
    def open(self, now: datetime) -> "ChallengeQuerySet":
        return self.filter(used_at=None, expires_at__gt=now)


class Challenge(models.Model):
    """What a passkey is asked to sign next.

    The browser never supplies it: the server finds it by session, human, purpose and subject.
    """

    class Purpose(models.TextChoices):
        SETUP = "setup"
        SIGN_IN = "sign_in"
        PASSKEY = "passkey"
        PRESENCE = "presence"
        # For one sensitive act of the signed-in human, named in `data`.
        VERIFICATION = "verification"
        APPROVAL = "approval"
        CLAIM = "claim"
        CONFIRMATION = "confirmation"
        # An administrator signs for the log that continues after a restore.
        BREAK = "break"
        # An administrator releases grants that a restore suspended.
        RELEASE = "release"
        # The party that imposed a suspension lifts it: the owner, or an administrator.
        RESUME = "resume"
        # An administrator approves a version of a service provider's catalogue.
        CATALOGUE = "catalogue"
        # An administrator approves a service provider's logo.
        LOGO = "logo"
        # Not signed: records that the human took the second step for these dangerous permissions.
        SECOND_STEP = "second_step"

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    purpose = models.CharField(max_length=16, choices=Purpose)
    challenge = models.BinaryField(max_length=32)
    # SHA-256 of the session key: a challenge is valid only in the session that asked for it.
    session = models.BinaryField(max_length=32)
    human = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, null=True, related_name="+"
    )
    # What it is about: the id of the row, or the name of the log. Empty for SIGN_IN, PASSKEY,
    # PRESENCE and VERIFICATION.
    subject = models.CharField(max_length=64, blank=True)
    # The statement whose hash is the challenge, and the sentences the human read.
    statement = models.JSONField(default=dict)
    consent_text = models.TextField(blank=True)
    data = models.JSONField(default=dict)
    created_at = models.DateTimeField()
    expires_at = models.DateTimeField()
    used_at = models.DateTimeField(null=True)

    objects = ChallengeQuerySet.as_manager()

    class Meta:
        indexes = [
            models.Index(fields=["session", "purpose", "subject"], name="challenge_who_asks"),
            models.Index(fields=["expires_at"], name="challenge_expires"),
        ]

    def __str__(self) -> str:
        return f"{self.purpose} {self.subject}"


class Receipt(models.Model):
    """The signed proof of one decision.

    When a human it concerns is deleted, its texts become empty and the row stays; texts that
    another's grant rests on stay too (approvals/services/text_erasure.py).
    """

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    kind = models.CharField(max_length=16)
    decision = models.CharField(max_length=16)
    # The id of the row it is about, as text: receipts outlive rows.
    subject = models.CharField(max_length=64)
    human = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+")
    # Unique, so that a challenge leads to one decision even if two requests answer it at once.
    challenge = models.BinaryField(max_length=32, unique=True)
    # SHA-256 of the assertion, so that posting the same one again returns the same receipt.
    assertion = models.BinaryField(max_length=32)
    passkey_name = models.CharField(max_length=80)
    consent_text = models.TextField()
    # The JWS, typ approval-receipt+jwt.
    compact = models.TextField()
    # The key that signed it. Null for receipts from before release 4 until a job reads it out of
    # `compact`; empty if that text was erased by then.
    kid = models.CharField(max_length=64, null=True)  # noqa: DJ001 - null and empty differ
    created_at = models.DateTimeField()

    class Meta:
        indexes = [
            models.Index(fields=["kind", "subject", "created_at"], name="receipt_subject"),
            models.Index(fields=["kid", "kind"], name="receipt_kid"),
        ]

    def __str__(self) -> str:
        return f"{self.decision} {self.subject}"


# A channel with none of these is a removed e-mail channel, which stays until its last messages are
# sent (approvals/notifications/channel_management.py).
IN_USE = (
    models.Q(for_requests=True) | models.Q(for_confirmations=True) | models.Q(for_security=True)
)


class NotificationChannel(models.Model):
    """An address to which a human gets notifications, what for, and the quiet hours."""

    class Kind(models.TextChoices):
        # To the address of the account.
        EMAIL = "email"
        # Signed, in the format of Standard Webhooks.
        WEBHOOK = "webhook"
        # Webhooks in the format of a chat room.
        SLACK = "slack"
        TEAMS = "teams"
        # One browser, through the push service of its maker.
        PUSH = "push"

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    human = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+")
    kind = models.CharField(max_length=16, choices=Kind)
    # The URL of a webhook or of a browser's push service; empty for e-mail.
    target = models.CharField(max_length=1024, blank=True)
    # The key that signs a webhook's messages, or the keys of a browser's subscription, encrypted by
    # approvals/notifications/channel_secrets.py. For a chat room the encrypted key is empty; for
    # e-mail this column is.
    secret = models.TextField(blank=True)
    # The browser, such as "Chrome on Android"; empty for the others.
    name = models.CharField(max_length=80, blank=True)
    for_requests = models.BooleanField()
    for_confirmations = models.BooleanField()
    for_security = models.BooleanField()
    # In the human's time zone. Requests and confirmations wait for the end; security does not.
    quiet_from = models.TimeField(null=True)
    quiet_until = models.TimeField(null=True)
    created_at = models.DateTimeField()
    # When the last message was accepted.
    last_sent_at = models.DateTimeField(null=True)

    class Meta:
        indexes = [models.Index(fields=["human", "kind"], name="channel_human_kind")]
        constraints = [
            models.UniqueConstraint(
                fields=["human"], condition=models.Q(kind="email"), name="channel_one_email"
            ),
            models.CheckConstraint(
                condition=models.Q(kind="email", target="", secret="")
                | (
                    models.Q(kind__in=["webhook", "slack", "teams", "push"])
                    & ~models.Q(target="")
                    & ~models.Q(secret="")
                ),
                name="channel_kind",
            ),
            models.CheckConstraint(
                condition=models.Q(quiet_from=None, quiet_until=None)
                | models.Q(quiet_from__isnull=False, quiet_until__isnull=False),
                name="channel_quiet_is_whole",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.created_at:%Y-%m-%d %H:%M}"


class Notification(models.Model):
    """One message to one channel: an outbox row. Contains no text, so nothing to erase in it."""

    class What(models.TextChoices):
        REQUEST = "request"
        REQUEST_ENDS = "request_ends"
        # A grant that was used lately ends soon.
        GRANT_ENDS = "grant_ends"
        CONFIRMATION = "confirmation"
        # Another person decided for the owner of the agent: on a request, on a transaction.
        DECIDED = "decided"
        DECIDED_PAYMENT = "decided_payment"
        PASSKEY_ADDED = "passkey_added"
        PASSKEY_REMOVED = "passkey_removed"
        RECOVERY_BEGUN = "recovery_begun"
        # Also the first message of a new channel, which shows that it works.
        CHANNEL_CHANGED = "channel_changed"

    class State(models.TextChoices):
        PENDING = "pending"
        SENT = "sent"
        # No longer worth sending, such as a request that was decided or has ended (`is_unwanted` in
        # approvals/notifications/outbox.py).
        MOOT = "moot"
        # Failed too often, or until it expired. Before it expires, an administrator may have it
        # sent again.
        DEAD = "dead"

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    channel = models.ForeignKey(NotificationChannel, on_delete=models.CASCADE, related_name="+")
    what = models.CharField(max_length=16, choices=What)
    # The id of the grant or confirmation; a new id for a security message, so that each is sent.
    subject = models.UUIDField()
    state = models.CharField(max_length=8, choices=State, default=State.PENDING)
    created_at = models.DateTimeField()
    # When to send it, or send it again.
    due_at = models.DateTimeField()
    # When it is no longer worth sending.
    expires_at = models.DateTimeField()
    attempts = models.PositiveSmallIntegerField(default=0)
    # Why the last attempt failed: our own word or the name of an exception, no text of a server.
    error = models.CharField(max_length=40, blank=True)
    ended_at = models.DateTimeField(null=True)

    class Meta:
        indexes = [
            models.Index(fields=["state", "due_at"], name="notification_state_due"),
            models.Index(fields=["ended_at"], name="notification_ended"),
        ]
        constraints = [
            # If two processes add the same message at once, the database refuses the second.
            models.UniqueConstraint(
                fields=["channel", "what", "subject"], name="notification_told_once"
            ),
            models.CheckConstraint(
                condition=models.Q(state="pending", ended_at=None)
                | (models.Q(state__in=["sent", "moot", "dead"]) & models.Q(ended_at__isnull=False)),
                name="notification_state",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.what} {self.created_at:%Y-%m-%d %H:%M}"
