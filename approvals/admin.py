"""Humans and invitations in the admin site: rows to read, actions that call services."""

from typing import Any

from django.contrib import admin
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.translation import gettext_lazy as _

from approvals.models import Notification, SetupCode
from approvals.notifications.delivery import retry
from approvals.services.human_suspension_and_erasure import suspend_human
from audit.admin import ReadOnlyAdmin
from registry.admin import ask_first, each, sign_each
from registry.models import Human
from registry.services.humans import end_sessions


class HumanAdmin(ReadOnlyAdmin[Human]):
    list_display = ("name", "email", "status", "is_staff", "created_at")
    list_filter = ("status", "is_staff")
    search_fields = ("name", "email")
    ordering = ("name",)
    actions = ("suspend", "resume", "end_sessions", "delete")

    @admin.action(description=_("Suspend the humans (their agents stop)"))
    def suspend(self, request: HttpRequest, rows: QuerySet[Human]) -> None:
        each(self, request, rows, suspend_human, "human")

    @admin.action(description=_("Resume the humans (you sign for each)"))
    def resume(self, request: HttpRequest, rows: QuerySet[Human]) -> HttpResponse:
        return sign_each("/resume/human/", rows, Q(status=Human.Status.SUSPENDED))

    @admin.action(description=_("Sign the humans out everywhere"))
    def end_sessions(self, request: HttpRequest, rows: QuerySet[Human]) -> None:
        each(self, request, rows, end_sessions, "human")

    @admin.action(description=_("Delete the humans for good (asks first)"))
    def delete(self, _request: HttpRequest, rows: QuerySet[Human]) -> HttpResponse:
        return ask_first("human", rows, ~Q(status=Human.Status.DELETED))


class InvitationAdmin(ReadOnlyAdmin[SetupCode]):
    list_display = ("email", "is_staff", "created_at", "expires_at", "used_at")
    list_filter = ("is_staff",)
    search_fields = ("email",)
    ordering = ("-created_at",)
    # A digest would let an administrator recognise who holds which link.
    exclude = ("digest",)
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
