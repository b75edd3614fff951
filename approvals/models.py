"""Rows of the approvals app: passkeys, one-time setup codes, server-side challenges and the receipts of decisions."""

from datetime import datetime
from typing import Self

from django.conf import settings
from django.db import models
from django.utils import timezone

from audit.identifiers import new_id
from kms.seals import Sealed


class Passkey(Sealed):
    """A public key credential of a human. Receipts carry their own copy, so a removed one is really gone."""

    SEALED = ("id", "human_id", "credential_id", "public_key")

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


class SetupCode(Sealed):
    """A one-time link that ends in a passkey. Only the code's digest is kept; one that was used has no seal."""

    SEALED = ("id", "kind", "digest", "email", "is_staff", "expires_at")

    class Kind(models.TextChoices):
        FIRST_ADMIN = "first_admin"
        INVITATION = "invitation"
        # Made by releases before 3 alone, whose links worked at once: refused. See Recovery.
        RECOVERY = "recovery"

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    kind = models.CharField(max_length=16, choices=Kind)
    digest = models.BinaryField(max_length=32, unique=True)
    email = models.EmailField(blank=True)
    is_staff = models.BooleanField(default=False)
    created_at = models.DateTimeField()
    expires_at = models.DateTimeField()
    used_at = models.DateTimeField(null=True)
    # Who came in by it.
    human = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, related_name="+"
    )

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=models.Q(kind__in=["first_admin", "invitation", "recovery"]), name="setup_code_kind"
            )
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.created_at:%Y-%m-%d %H:%M}"

    @classmethod
    def giving(cls) -> models.QuerySet[Self]:
        return super().giving().filter(used_at=None, expires_at__gt=timezone.now())


class RecoveryQuerySet(models.QuerySet["Recovery"]):
    def open(self, now: datetime) -> "RecoveryQuerySet":
        """Neither used, cancelled nor past its end."""
        return self.filter(used_at=None, cancelled_at=None, expires_at__gt=now)


class Recovery(Sealed):
    """A person is to get a new passkey in place of all others. Its state follows from these columns and the time.

    One that was used or cancelled has no seal.
    """

    SEALED = (
        *("id", "human_id", "case", "begun_by_id", "confirmed_by_id", "ready_at", "expires_at"),
        *("link_digest", "link_expires_at"),
    )

    class Case(models.TextChoices):
        # The old passkeys work until the new one is made, so that the person can cancel with one.
        LOST = "lost"
        # The account is suspended, and a second administrator decides.
        STOLEN = "stolen"

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    human = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+")
    case = models.CharField(max_length=8, choices=Case)
    # The administrator; null for an operator, whom the event names.
    begun_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, null=True, related_name="+"
    )
    begun_at = models.DateTimeField()
    # The second administrator.
    confirmed_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, null=True, related_name="+"
    )
    confirmed_at = models.DateTimeField(null=True)
    # From then on a link can be made. Null while a second administrator has to decide.
    ready_at = models.DateTimeField(null=True)
    expires_at = models.DateTimeField()
    cancelled_at = models.DateTimeField(null=True)
    used_at = models.DateTimeField(null=True)
    # Of the newest link: SHA-256 of its code, and when it ends.
    link_digest = models.BinaryField(max_length=32, unique=True, null=True)
    link_expires_at = models.DateTimeField(null=True)
    # When to tell the person of its state by mail, or to try again; null once they were told.
    notice_due_at = models.DateTimeField(null=True)
    # Tries in a row that failed.
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
                condition=models.Q(case="lost") | models.Q(ready_at=None) | ~models.Q(confirmed_at=None),
                name="recovery_stolen_is_confirmed",
            ),
            models.CheckConstraint(
                condition=models.Q(confirmed_by=None)
                | models.Q(begun_by=None)
                | ~models.Q(confirmed_by=models.F("begun_by")),
                name="recovery_second_is_another",
            ),
            models.CheckConstraint(
                condition=models.Q(used_at=None) | ~models.Q(ready_at=None), name="recovery_used_was_ready"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.case} {self.begun_at:%Y-%m-%d %H:%M}"

    @classmethod
    def giving(cls) -> models.QuerySet[Self]:
        return super().giving().filter(used_at=None, cancelled_at=None, expires_at__gt=timezone.now())


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
    """The signed proof of one decision. Its texts are blanked when its person is deleted; the row stays."""

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
    # The key that signed it; null until the jobs have read it out of a receipt from before release 4. Empty where the text
    # had gone by then.
    kid = models.CharField(max_length=64, null=True)  # noqa: DJ001 - null and empty differ
    created_at = models.DateTimeField()

    class Meta:
        indexes = [
            models.Index(fields=["kind", "subject", "created_at"], name="receipt_subject"),
            models.Index(fields=["kid", "kind"], name="receipt_kid"),
        ]

    def __str__(self) -> str:
        return f"{self.decision} {self.subject}"
