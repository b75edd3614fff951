"""Who decides for whom: groups of approvers, the rules that name them, absences and deputies.

Each of these rows gives a permission, so each has a seal. `registry/services/approvers.py` writes
them.
"""

from django.conf import settings
from django.db import models

from agentauth.protocol.capability import TYPES
from audit.new_ids import new_id
from kms.row_seals import Sealed
from registry.models.service_providers import ServiceProvider


class ApproverGroup(Sealed):
    """A group of people who may each decide, its time limit, and the next group."""

    SEALED = ("id", "name", "wait_minutes", "next_id")

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    name = models.CharField(max_length=80, unique=True)
    wait_minutes = models.PositiveSmallIntegerField()
    # Null: the administrators.
    next = models.ForeignKey("self", on_delete=models.PROTECT, null=True, related_name="+")
    created_at = models.DateTimeField()

    def __str__(self) -> str:
        return self.name


class GroupMember(Sealed):
    """One person in one group. Removing them deletes the row, which ends its seal."""

    SEALED = ("id", "group_id", "human_id")

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    group = models.ForeignKey(ApproverGroup, on_delete=models.PROTECT, related_name="+")
    human = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+")
    created_at = models.DateTimeField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["group", "human"], name="group_member_once")]

    def __str__(self) -> str:
        return f"{self.human_id} in {self.group_id}"


class ApprovalRule(Sealed):
    """Which requests a group decides. The rules are tried by `position`; the first match counts.

    The row stays when the rule ends. Without a rule the owner decides alone, so the serving role
    cannot delete the row.
    """

    SEALED = (
        *("id", "position", "name", "service_provider_id", "action_type"),
        *("above_minor", "currency", "group_id", "ended_at"),
    )

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    position = models.PositiveIntegerField()
    name = models.CharField(max_length=80)
    # Null: any service.
    service_provider = models.ForeignKey(
        ServiceProvider, on_delete=models.PROTECT, null=True, related_name="+"
    )
    # Empty: any type.
    action_type = models.CharField(
        max_length=16, choices=[(each, each) for each in TYPES], blank=True
    )
    # Payments of more than this, in minor units; null: any request.
    above_minor = models.BigIntegerField(null=True)
    currency = models.CharField(max_length=3, blank=True)
    group = models.ForeignKey(ApproverGroup, on_delete=models.PROTECT, related_name="+")
    created_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=models.Q(above_minor=None, currency="")
                | (models.Q(above_minor__gte=0) & ~models.Q(currency="")),
                name="approval_rule_amount_has_currency",
            )
        ]

    def __str__(self) -> str:
        return self.name


class Absence(Sealed):
    """A person decides nothing from `starts_at` until just before `ends_at`; a deputy may."""

    SEALED = ("id", "human_id", "starts_at", "ends_at", "deputy_id")

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    human = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+")
    starts_at = models.DateTimeField()
    ends_at = models.DateTimeField()
    deputy = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, null=True, related_name="+"
    )
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=models.Q(starts_at__lt=models.F("ends_at")), name="absence_has_length"
            ),
            models.CheckConstraint(
                condition=models.Q(deputy=None) | ~models.Q(deputy=models.F("human")),
                name="absence_deputy_is_another",
            ),
        ]
        indexes = [models.Index(fields=["ends_at"], name="absence_ends")]

    def __str__(self) -> str:
        return f"{self.human_id} {self.starts_at:%Y-%m-%d %H:%M}"
