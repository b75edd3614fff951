"""Rows of the approvals app: passkeys, one-time setup codes, server-side challenges and the receipts of decisions."""

from datetime import datetime

from django.conf import settings
from django.db import models

from audit.identifiers import new_id
from registry.models import Human


class Passkey(models.Model):
    """A public key credential of a human. Receipts carry their own copy, so a removed one is really gone."""

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    human = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+")
    # Unique across all humans: an id that is known can never be registered again (WebAuthn L3 section 7.1).
    credential_id = models.BinaryField(max_length=1023, unique=True)
    # COSE_Key as attested.
    public_key = models.BinaryField(max_length=2048)
    # Random, one per human and the same on each of their passkeys: it says nothing about them.
    user_handle = models.BinaryField(max_length=64)
    sign_count = models.BigIntegerField()
    name = models.CharField(max_length=80)
    aaguid = models.CharField(max_length=36, blank=True)
    transports = models.JSONField(default=list)
    # Whether it may be synced: settled when it is made, so another answer is refused. Null until its next signature for
    # passkeys from before release 2.
    backup_eligible = models.BooleanField(null=True)
    # Whether it is, by its latest signature.
    backed_up = models.BooleanField(default=False)
    created_at = models.DateTimeField()
    last_used_at = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return self.name

    @property
    def expected_backup_eligible(self) -> bool | None:
        """What its next signature must say; None if either will do. What was synced could be, also if not noted then."""
        return True if self.backup_eligible is None and self.backed_up else self.backup_eligible


class SetupCodeQuerySet(models.QuerySet["SetupCode"]):
    def recovering(self, human: Human, now: datetime) -> "SetupCodeQuerySet":
        """Recovery links of this human that still work."""
        links = self.filter(human=human, kind=SetupCode.Kind.RECOVERY)
        return links.filter(used_at=None, expires_at__gt=now)


class SetupCode(models.Model):
    """A one-time link that ends in a passkey. Only the code's digest is kept."""

    class Kind(models.TextChoices):
        FIRST_ADMIN = "first_admin"
        INVITATION = "invitation"
        RECOVERY = "recovery"

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    kind = models.CharField(max_length=16, choices=Kind)
    digest = models.BinaryField(max_length=32, unique=True)
    email = models.EmailField(blank=True)
    is_staff = models.BooleanField(default=False)
    created_at = models.DateTimeField()
    expires_at = models.DateTimeField()
    used_at = models.DateTimeField(null=True)
    # Who came in by it; of a recovery link, whom it is for.
    human = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, related_name="+"
    )

    objects = SetupCodeQuerySet.as_manager()

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=models.Q(kind__in=["first_admin", "invitation", "recovery"]), name="setup_code_kind"
            )
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.created_at:%Y-%m-%d %H:%M}"


class ChallengeQuerySet(models.QuerySet["Challenge"]):
    def open(self, now: datetime) -> "ChallengeQuerySet":
        return self.filter(used_at=None, expires_at__gt=now)


class Challenge(models.Model):
    """What a passkey is asked to sign next. It never comes from the browser: it is found by who asks for what."""

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
        # An owner or an administrator lifts their own suspension.
        RESUME = "resume"
        # Not signed: the record that the person took the second step for these dangerous permissions.
        SECOND_STEP = "second_step"

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    purpose = models.CharField(max_length=16, choices=Purpose)
    challenge = models.BinaryField(max_length=32)
    # SHA-256 of the session key: a challenge of one session is nothing in another.
    session = models.BinaryField(max_length=32)
    human = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, null=True, related_name="+")
    # What it is about: the id of the row, or the name of the log; empty for a sign-in.
    subject = models.CharField(max_length=64, blank=True)
    # The statement whose hash the challenge is, and the sentences the person read.
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
    """The signed proof of one decision, kept for ever as it was handed out."""

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    kind = models.CharField(max_length=16)
    decision = models.CharField(max_length=16)
    # The id of the row it is about, as text: receipts outlive rows.
    subject = models.CharField(max_length=64)
    human = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+")
    # Each challenge can bring about one decision, whoever is first.
    challenge = models.BinaryField(max_length=32, unique=True)
    # SHA-256 of the assertion: the same one posted again gets the same answer.
    assertion = models.BinaryField(max_length=32)
    passkey_name = models.CharField(max_length=80)
    consent_text = models.TextField()
    # The JWS, typ approval-receipt+jwt.
    compact = models.TextField()
    created_at = models.DateTimeField()

    class Meta:
        indexes = [models.Index(fields=["kind", "subject", "created_at"], name="receipt_subject")]

    def __str__(self) -> str:
        return f"{self.decision} {self.subject}"
