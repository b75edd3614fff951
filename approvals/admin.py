"""Humans and invitations in the admin site: rows to read, actions that call services."""

from collections.abc import Callable
from typing import Any, ClassVar

from django.contrib import admin
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.translation import gettext_lazy as _

from approvals.models import Notification, SetupCode
from approvals.notifications.delivery import retry
from approvals.role_words import ROLES
from approvals.services.human_suspension_and_erasure import suspend_human
from approvals.views.request_helpers import human_of
from audit.admin import ReadOnlyAdmin
from registry.admin import ask_first, each, sign_each
from registry.models import Human
from registry.roles import Role
from registry.services.humans import end_sessions
from registry.services.roles import check_may_stop


class RoleFilter(admin.SimpleListFilter):
    """Filter people or invitations by role."""

    title = _("role")
    parameter_name = "role"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return [(str(role), words.label) for role, words in ROLES.items()]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        wanted = self.value()
        if wanted not in {str(role) for role in Role}:
            return queryset
        is_owner = Q(is_staff=True)
        return queryset.filter(is_owner if wanted == Role.OWNER else Q(admin_role=wanted))


class _WithRole(ReadOnlyAdmin[Any]):
    """Rows of people or invitations: one role instead of its two columns."""

    exclude: ClassVar[tuple[str, ...]] = ("is_staff", "admin_role")
    readonly_fields = ("role",)

    @admin.display(description=_("role"))
    def role(self, row: Human | SetupCode) -> str:
        named = row.named_role
        return "" if named is None else str(ROLES[named].label)


def _unless_administrator(
    request: HttpRequest, act: Callable[..., object]
) -> Callable[..., object]:
    """The act, refused for an administrator unless an owner does it."""

    def checked(*, human: Human, **how: Any) -> None:
        check_may_stop(human_of(request), human)
        act(human=human, **how)

    return checked


class HumanAdmin(_WithRole):
    list_display = ("name", "email", "status", "role", "created_at")
    list_filter = ("status", RoleFilter)
    search_fields = ("name", "email")
    ordering = ("name",)
    actions = ("suspend", "resume", "end_sessions", "delete")

    @admin.action(description=_("Suspend the humans (their agents stop)"))
    def suspend(self, request: HttpRequest, rows: QuerySet[Human]) -> None:
        each(self, request, rows, _unless_administrator(request, suspend_human), "human")

    @admin.action(description=_("Resume the humans (you sign for each)"))
    def resume(self, request: HttpRequest, rows: QuerySet[Human]) -> HttpResponse:
        return sign_each("/resume/human/", rows, Q(status=Human.Status.SUSPENDED))

    @admin.action(description=_("Sign the humans out everywhere"))
    def end_sessions(self, request: HttpRequest, rows: QuerySet[Human]) -> None:
        each(self, request, rows, _unless_administrator(request, end_sessions), "human")

    @admin.action(description=_("Delete the humans for good (asks first)"))
    def delete(self, _request: HttpRequest, rows: QuerySet[Human]) -> HttpResponse:
        return ask_first("human", rows, ~Q(status=Human.Status.DELETED))


class InvitationAdmin(_WithRole):
    list_display = ("email", "role", "created_at", "expires_at", "used_at")
    list_filter = (RoleFilter,)
    search_fields = ("email",)
    ordering = ("-created_at",)
    # A digest would let an administrator recognise who holds which link.
    exclude = ("digest", "is_staff", "admin_role")
    actions = ("forget",)

    def __init__(self, model: type[SetupCode], admin_site: admin.AdminSite) -> None:
        super().__init__(model, admin_site)
        # Set here, because a change to the model's Meta would need a migration.
        self.opts.verbose_name, self.opts.verbose_name_plural = _("invitation"), _("invitations")

    def get_queryset(self, request: HttpRequest) -> QuerySet[SetupCode]:
        return super().get_queryset(request).filter(kind=SetupCode.Kind.INVITATION)

    @admin.action(description=_("Forget the unused invitations for good (asks first)"))
    def forget(self, _request: HttpRequest, rows: QuerySet[SetupCode]) -> HttpResponse:
        return ask_first("invitation", rows, Q(used_at=None))


class NotificationAdmin(ReadOnlyAdmin[Notification]):
    """The outbox. Dead messages failed too often, or until what they say was over."""

    list_display = ("human", "to", "what", "state", "error", "attempts", "created_at", "ended_at")
    list_filter = ("state", "what", "channel__kind")
    search_fields = ("channel__human__name", "channel__human__email")
    list_select_related = ("channel__human",)
    ordering = ("-created_at",)
    actions = ("send_again",)

    @admin.display(description=_("human"))
    def human(self, row: Notification) -> str:
        return str(row.channel.human)

    @admin.display(description=_("to"))
    def to(self, row: Notification) -> str:
        return row.channel.get_kind_display()

    @admin.action(description=_("Send the dead messages again"))
    def send_again(self, request: HttpRequest, rows: QuerySet[Notification]) -> None:
        each(self, request, rows.select_related("channel"), retry, "notification")


ADMINS: list[tuple[Any, Any]] = [
    (Human, HumanAdmin),
    (SetupCode, InvitationAdmin),
    (Notification, NotificationAdmin),
]
