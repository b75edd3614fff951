"""Humans: the people who approve. They have passkeys (approvals app) and never a password."""

from typing import Any, ClassVar, Self

from django.conf import settings
from django.contrib.auth.base_user import AbstractBaseUser
from django.db import models
from django.db.models.functions import Lower
from django.utils.crypto import salted_hmac
from django.utils.functional import cached_property

from audit.new_ids import new_id
from kms.row_seals import Sealed
from registry.roles import NONE, PERMISSIONS, Permission, Role, columns_of, role_in


class Human(Sealed, AbstractBaseUser):
    """A person. `status` decides whether they may sign in and whether their agents may act.

    Only administrators have a seal: check `permissions`, because the columns prove nothing.
    """

    SEALED = ("id", "is_staff", "admin_role")
    SEALED_IF_SET = frozenset({"admin_role"})

    class Status(models.TextChoices):
        ACTIVE = "active"
        SUSPENDED = "suspended"
        DELETED = "deleted"

    # Django's base class has both. Humans have no password here, and sign-ins are audit events.
    password: ClassVar[None] = None  # type: ignore[assignment, misc]  # how Django takes a field away
    last_login: ClassVar[None] = None  # type: ignore[misc]  # as above

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    email = models.EmailField(unique=True)
    name = models.CharField(max_length=80)
    status = models.CharField(max_length=16, choices=Status, default=Status.ACTIVE)
    # Owners alone: release 4 knows no roles, and would let any other one do everything (ADR 50).
    is_staff = models.BooleanField(default=False)
    # The role of any other administrator.
    admin_role = models.CharField(max_length=16, null=True)  # noqa: DJ001 — as `language`
    time_zone = models.CharField(max_length=64, default="UTC")
    # None: not chosen. Pages then follow the browser, and mails are in LANGUAGE_CODE. Nullable,
    # since SQLite adds any other column by a new table, which triggers do not let it rename.
    language = models.CharField(max_length=16, null=True)  # noqa: DJ001
    # Raised to end all sessions of this human at once.
    session_epoch = models.PositiveIntegerField(default=0)
    created_at = models.DateTimeField()

    USERNAME_FIELD = "email"
    EMAIL_FIELD = "email"

    class Meta:
        constraints = [
            models.UniqueConstraint(Lower("email"), name="human_email_unique_in_any_case"),
            models.CheckConstraint(
                condition=models.Q(status__in=["active", "suspended", "deleted"]),
                name="human_status",
            ),
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def written_to_in(self) -> str:
        """The language of what is sent to this person, outside their pages."""
        return self.language or settings.LANGUAGE_CODE

    @property
    def is_active(self) -> bool:  # type: ignore[override]  # a field there, derived here
        return self.status == self.Status.ACTIVE

    @classmethod
    def giving(cls) -> models.QuerySet[Self]:
        # Release 4 deletes a person without taking the role from the row.
        other = models.Q(admin_role__isnull=False) & ~models.Q(status=cls.Status.DELETED)
        return super().giving().filter(models.Q(is_staff=True) | other)

    @property
    def named_role(self) -> Role | None:
        """The role that the columns name. It proves nothing: for pages, and to lock rows."""
        return role_in(is_staff=self.is_staff, admin_role=self.admin_role)

    @property
    def role(self) -> Role | None:
        """The role that this registry gave this human; None for other people.

        One query per loaded row, and only if its columns name a role.
        """
        named = self.named_role
        return named if named is not None and self._is_sealed_as_read else None

    @property
    def permissions(self) -> frozenset[Permission]:
        """What this human may do as an administrator now."""
        role = self.role if self.is_active else None
        return NONE if role is None else PERMISSIONS[role]

    def set_role(self, role: Role | None) -> None:
        """Write the role and its seal into this row. The caller saves both columns and `seal`."""
        self.is_staff, self.admin_role = columns_of(role)
        self.seal = None
        self.__dict__.pop("_is_sealed_as_read", None)
        if role is not None:
            self.set_seal()

    @cached_property
    def _is_sealed_as_read(self) -> bool:
        return self.is_sealed()

    def refresh_from_db(self, *args: Any, **kwargs: Any) -> None:
        super().refresh_from_db(*args, **kwargs)
        self.__dict__.pop("_is_sealed_as_read", None)

    def get_session_auth_hash(self) -> str:
        return self._session_hash(None)

    def get_session_auth_fallback_hash(self) -> list[str]:
        # Keeps sessions alive that began before SECRET_KEY was rotated.
        return [self._session_hash(key) for key in settings.SECRET_KEY_FALLBACKS]

    def _session_hash(self, secret: str | None) -> str:
        value = f"{self.pk}/{self.session_epoch}"
        return salted_hmac(
            "registry.human.session", value, secret=secret, algorithm="sha256"
        ).hexdigest()

    # For what Django itself asks; the control room asks for `permissions` (admin_permissions.py).
    def has_perm(self, perm: str, obj: Any = None) -> bool:
        return Permission.OWN in self.permissions

    def has_module_perms(self, app_label: str) -> bool:
        return Permission.OWN in self.permissions
