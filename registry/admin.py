"""Humans, service providers, agents and grants in the admin site: rows to read, actions that call services."""

from collections.abc import Callable
from typing import Any

from django.contrib import admin, messages
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from agentauth.protocol.errors import AgentAuthError, TemporarilyUnavailableError
from audit import kinds
from audit.admin import ReadOnlyAdmin
from audit.services import Actor, record_refusal
from registry.models import Agent, Grant, Human, ServiceProvider
from registry.services import agents, grants, people, service_providers


def admin_actor(request: HttpRequest) -> Actor:
    """The admin who acts, as audit stores it."""
    return Actor("human", str(request.user.pk), str(getattr(request, "request_id", "")))


def record_admin_refusal(request: HttpRequest, error: AgentAuthError) -> None:
    """Record what was refused: shown as a message instead of raised, it would not reach the edge that does.

    What could not be done now was not refused, and is raised again: the page says so with 503.
    """
    if isinstance(error, TemporarilyUnavailableError):
        raise error
    match = request.resolver_match
    record_refusal(
        kind=kinds.REQUEST_REFUSED,
        actor=admin_actor(request),
        at=timezone.now(),
        error=error,
        route=f"{request.method} {match.route if match else ''}",
        human_id=str(request.user.pk),
    )


def each(
    model_admin: "admin.ModelAdmin[Any]",
    request: HttpRequest,
    rows: QuerySet[Any],
    act: Callable[[Any, Actor], None],
) -> None:
    """Call the service for every row; say how many it did, and why it did not do the others."""
    done, actor = 0, admin_actor(request)
    for row in rows:
        try:
            act(row, actor)
        except AgentAuthError as error:
            record_admin_refusal(request, error)
            model_admin.message_user(request, f"{row}: {error.description}", messages.ERROR)
        else:
            done += 1
    if done:
        model_admin.message_user(request, _("Done for %(count)d.") % {"count": done}, messages.SUCCESS)


class HumanAdmin(ReadOnlyAdmin[Human]):
    list_display = ("name", "email", "status", "is_staff", "created_at")
    list_filter = ("status", "is_staff")
    search_fields = ("name", "email")
    ordering = ("name",)
    actions = ("suspend", "resume", "end_sessions")

    @admin.action(description=_("Suspend the humans (their agents stop)"))
    def suspend(self, request: HttpRequest, rows: QuerySet[Human]) -> None:
        each(
            self,
            request,
            rows,
            lambda row, actor: people.suspend_human(human=row, actor=actor, now=timezone.now()),
        )

    @admin.action(description=_("Resume the humans"))
    def resume(self, request: HttpRequest, rows: QuerySet[Human]) -> None:
        each(
            self,
            request,
            rows,
            lambda row, actor: people.resume_human(human=row, actor=actor, now=timezone.now()),
        )

    @admin.action(description=_("Sign the humans out everywhere"))
    def end_sessions(self, request: HttpRequest, rows: QuerySet[Human]) -> None:
        each(
            self,
            request,
            rows,
            lambda row, actor: people.end_sessions(human=row, actor=actor, now=timezone.now()),
        )


class ServiceProviderAdmin(ReadOnlyAdmin[ServiceProvider]):
    list_display = ("name", "slug", "audience", "status", "is_auditor", "require_nonce", "created_at")
    list_filter = ("status", "is_auditor", "require_nonce")
    search_fields = ("name", "slug", "audience")
    ordering = ("name",)
    actions = ("suspend", "resume", "revoke")

    @admin.action(description=_("Suspend the service providers"))
    def suspend(self, request: HttpRequest, rows: QuerySet[ServiceProvider]) -> None:
        self._each(request, rows, service_providers.suspend_service_provider)

    @admin.action(description=_("Resume the service providers"))
    def resume(self, request: HttpRequest, rows: QuerySet[ServiceProvider]) -> None:
        self._each(request, rows, service_providers.resume_service_provider)

    @admin.action(description=_("Revoke the service providers for good"))
    def revoke(self, request: HttpRequest, rows: QuerySet[ServiceProvider]) -> None:
        self._each(request, rows, service_providers.revoke_service_provider)

    def _each(
        self, request: HttpRequest, rows: QuerySet[ServiceProvider], service: Callable[..., None]
    ) -> None:
        each(
            self,
            request,
            rows,
            lambda row, actor: service(service_provider=row, actor=actor, now=timezone.now()),
        )


class AgentAdmin(ReadOnlyAdmin[Agent]):
    list_display = ("name", "status", "human", "model_origin", "expires_at", "created_at")
    list_filter = ("status",)
    list_select_related = ("human",)
    search_fields = ("id", "name", "jkt", "human__email")
    ordering = ("-created_at",)
    actions = ("suspend", "resume", "revoke")

    @admin.action(description=_("Suspend the agents"))
    def suspend(self, request: HttpRequest, rows: QuerySet[Agent]) -> None:
        each(
            self,
            request,
            rows,
            lambda row, actor: agents.suspend_agent(
                agent=row, actor=actor, now=timezone.now(), by_admin=True
            ),
        )

    @admin.action(description=_("Resume the agents"))
    def resume(self, request: HttpRequest, rows: QuerySet[Agent]) -> None:
        each(
            self,
            request,
            rows,
            lambda row, actor: agents.resume_agent(agent=row, actor=actor, now=timezone.now(), by_admin=True),
        )

    @admin.action(description=_("Revoke the agents for good"))
    def revoke(self, request: HttpRequest, rows: QuerySet[Agent]) -> None:
        each(
            self,
            request,
            rows,
            lambda row, actor: agents.revoke_agent(agent=row, actor=actor, now=timezone.now()),
        )


class GrantAdmin(ReadOnlyAdmin[Grant]):
    list_display = ("agent", "service_provider", "status", "human", "created_at", "valid_until")
    list_filter = ("status", "service_provider")
    list_select_related = ("agent", "service_provider", "human")
    search_fields = ("id", "agent__name", "service_provider__name")
    ordering = ("-created_at",)
    actions = ("deny", "suspend", "resume", "revoke")

    @admin.action(description=_("Deny the pending requests"))
    def deny(self, request: HttpRequest, rows: QuerySet[Grant]) -> None:
        human = Human.objects.get(pk=str(request.user.pk))
        each(
            self,
            request,
            rows,
            lambda row, actor: grants.deny_grant(
                grant=row,
                human=human,
                reason=str(_("Denied by an administrator.")),
                actor=actor,
                now=timezone.now(),
            ),
        )

    @admin.action(description=_("Suspend the grants"))
    def suspend(self, request: HttpRequest, rows: QuerySet[Grant]) -> None:
        each(
            self,
            request,
            rows,
            lambda row, actor: grants.suspend_grant(
                grant=row, actor=actor, now=timezone.now(), by_admin=True
            ),
        )

    @admin.action(description=_("Resume the grants"))
    def resume(self, request: HttpRequest, rows: QuerySet[Grant]) -> None:
        each(
            self,
            request,
            rows,
            lambda row, actor: grants.resume_grant(grant=row, actor=actor, now=timezone.now(), by_admin=True),
        )

    @admin.action(description=_("Revoke the grants for good"))
    def revoke(self, request: HttpRequest, rows: QuerySet[Grant]) -> None:
        each(
            self,
            request,
            rows,
            lambda row, actor: grants.revoke_grant(grant=row, actor=actor, now=timezone.now()),
        )


ADMINS: "list[tuple[type[Model], type[admin.ModelAdmin[Any]]]]" = [
    (Agent, AgentAdmin),
    (Grant, GrantAdmin),
    (ServiceProvider, ServiceProviderAdmin),
    (Human, HumanAdmin),
]
