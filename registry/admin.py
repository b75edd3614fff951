"""Admin pages of service providers, agents, grants and keys: read-only rows, and actions."""

from collections.abc import Callable, Iterable
from typing import Any

from django.contrib import admin, messages
from django.db.models import Model, Q, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils import timezone
from django.utils.html import format_html
from django.utils.http import urlencode
from django.utils.translation import gettext_lazy as _

from agentauth.protocol.errors import AgentAuthError, TemporarilyUnavailableError
from audit.admin import ReadOnlyAdmin
from kms import services as keys
from kms.models import Key, KeyCertificate
from registry.authentication import actor_of
from registry.models import Agent, CatalogueVersion, Grant, ServiceProvider
from registry.refusal_recording import record_refused_request
from registry.refusal_translation import refusal_text
from registry.services import agents, grants, service_providers

# Ids that fit into one URL.
MOST_AT_ONCE = 100
# Agents and grants that an administrator can resume.
_HELD = Q(status=Agent.Status.SUSPENDED, suspended_by_admin=True)


def each(
    model_admin: "admin.ModelAdmin[Any]",
    request: HttpRequest,
    rows: Iterable[Any],
    service: Callable[..., object],
    member: str,
    **more: object,
) -> None:
    """Call `service` with each row as its argument `member`; show successes and refusals."""
    done, actor = 0, actor_of(request)
    for row in rows:
        try:
            service(**{member: row}, actor=actor, now=timezone.now(), **more)
        except TemporarilyUnavailableError:
            # Not a refusal: the answer is a 503.
            raise
        except AgentAuthError as error:
            # Shown as a message, the error never reaches the handler that records refusals.
            record_refused_request(request, error)
            model_admin.message_user(request, f"{row}: {refusal_text(error)}", messages.ERROR)
        else:
            done += 1
    if done:
        model_admin.message_user(
            request, _("Done for %(count)d.") % {"count": done}, messages.SUCCESS
        )


def ask_first(kind: str, rows: QuerySet[Any], left: Q) -> HttpResponse:
    """Redirect to the page that shows what would end, and asks. `left`: see `_name_parameters`."""
    return HttpResponseRedirect(
        f"/endings/{kind}/?{urlencode(_name_parameters(rows, left), doseq=True)}"
    )


def sign_each(place: str, rows: QuerySet[Any], left: Q) -> HttpResponse:
    """Redirect to where the administrator signs for each row; a session alone is not enough."""
    named = _name_parameters(rows, left)
    if len(named["id"]) == 1:
        return HttpResponseRedirect(f"{place}{named['id'][0]}/")
    return HttpResponseRedirect(f"{place}?{urlencode(named, doseq=True)}")


def _name_parameters(rows: QuerySet[Any], left: Q) -> dict[str, Any]:
    """The query parameters that name the rows: at most MOST_AT_ONCE ids.

    Of more rows, it names the first for which the action is still outstanding (`left`), and adds
    `of`, how many are outstanding. So selecting the same rows again leads to the next ones.
    """
    chosen = rows.order_by("pk").values_list("pk", flat=True)
    number = chosen.count()
    if number > MOST_AT_ONCE:
        chosen = chosen.filter(left)
        number = chosen.count()
    ids = [str(pk) for pk in chosen[:MOST_AT_ONCE]]
    return {"id": ids} | ({"of": number} if number > len(ids) else {})


class ServiceProviderAdmin(ReadOnlyAdmin[ServiceProvider]):
    list_display = (
        "name",
        "slug",
        "audience",
        "status",
        "is_auditor",
        "require_nonce",
        "created_at",
    )
    list_filter = ("status", "is_auditor", "require_nonce")
    search_fields = ("name", "slug", "audience")
    ordering = ("name",)
    actions = ("suspend", "resume", "revoke")

    @admin.action(description=_("Suspend the service providers"))
    def suspend(self, request: HttpRequest, rows: QuerySet[ServiceProvider]) -> None:
        each(self, request, rows, service_providers.suspend_service_provider, "service_provider")

    @admin.action(description=_("Resume the service providers (you sign for each)"))
    def resume(self, request: HttpRequest, rows: QuerySet[ServiceProvider]) -> HttpResponse:
        return sign_each(
            "/resume/service_provider/", rows, Q(status=ServiceProvider.Status.SUSPENDED)
        )

    @admin.action(description=_("Revoke the service providers for good (asks first)"))
    def revoke(self, _request: HttpRequest, rows: QuerySet[ServiceProvider]) -> HttpResponse:
        return ask_first("service_provider", rows, ~Q(status=ServiceProvider.Status.REVOKED))


class CatalogueVersionAdmin(ReadOnlyAdmin[CatalogueVersion]):
    list_display = ("service_provider", "version", "status", "proposed_at", "decided_at", "review")
    list_filter = ("status",)
    list_select_related = ("service_provider",)
    search_fields = ("service_provider__name", "service_provider__slug")
    ordering = ("-proposed_at",)

    @admin.display(description=_("As people see it"))
    def review(self, row: CatalogueVersion) -> str:
        return format_html('<a href="/catalogues/{}/">{}</a>', row.pk, _("Open"))


class AgentAdmin(ReadOnlyAdmin[Agent]):
    list_display = ("name", "status", "human", "model_origin", "expires_at", "created_at")
    list_filter = ("status",)
    list_select_related = ("human",)
    search_fields = ("id", "name", "jkt", "human__email")
    ordering = ("-created_at",)
    actions = ("suspend", "resume", "revoke")

    @admin.action(description=_("Suspend the agents"))
    def suspend(self, request: HttpRequest, rows: QuerySet[Agent]) -> None:
        each(self, request, rows, agents.suspend_agent, "agent", by_admin=True)

    @admin.action(description=_("Resume the agents (you sign for each)"))
    def resume(self, request: HttpRequest, rows: QuerySet[Agent]) -> HttpResponse:
        return sign_each("/resume/agent/", rows, _HELD)

    @admin.action(description=_("Revoke the agents for good (asks first)"))
    def revoke(self, _request: HttpRequest, rows: QuerySet[Agent]) -> HttpResponse:
        return ask_first("agent", rows, ~Q(status=Agent.Status.REVOKED))


class GrantAdmin(ReadOnlyAdmin[Grant]):
    list_display = ("agent", "service_provider", "status", "human", "created_at", "valid_until")
    list_filter = ("status", "service_provider")
    list_select_related = ("agent", "service_provider", "human")
    search_fields = ("id", "agent__name", "service_provider__name")
    ordering = ("-created_at",)
    actions = ("deny", "suspend", "resume", "revoke")

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        # A human's page links to the grants of their agents.
        return lookup == "agent__human__id__exact" or super().lookup_allowed(lookup, value, request)

    @admin.action(description=_("Deny the pending requests (you sign for each)"))
    def deny(self, request: HttpRequest, rows: QuerySet[Grant]) -> HttpResponse:
        return sign_each("/denials/", rows, Q(status=Grant.Status.PENDING))

    @admin.action(description=_("Suspend the grants"))
    def suspend(self, request: HttpRequest, rows: QuerySet[Grant]) -> None:
        each(self, request, rows, grants.suspend_grant, "grant", by_admin=True)

    @admin.action(description=_("Resume the grants (you sign for each)"))
    def resume(self, request: HttpRequest, rows: QuerySet[Grant]) -> HttpResponse:
        return sign_each("/resume/grant/", rows, _HELD)

    @admin.action(description=_("Revoke the grants for good (asks first)"))
    def revoke(self, _request: HttpRequest, rows: QuerySet[Grant]) -> HttpResponse:
        return ask_first(
            "grant", rows, Q(status__in=[Grant.Status.APPROVED, Grant.Status.SUSPENDED])
        )


class KeyAdmin(ReadOnlyAdmin[Key]):
    """Here and not in kms because the actor is a registry human. No column is secret."""

    list_display = (
        "kid",
        "purpose",
        "state",
        "algorithm",
        "published_at",
        "active_from",
        "retired_at",
    )
    list_filter = ("purpose", "state")
    ordering = ("-active_from",)
    actions = ("rotate", "disable")

    @admin.action(description=_("Rotate: publish the next key of the same purpose"))
    def rotate(self, request: HttpRequest, rows: QuerySet[Key]) -> None:
        purposes = rows.order_by("purpose").values_list("purpose", flat=True).distinct()
        each(self, request, purposes, keys.rotate_key, "purpose")

    @admin.action(description=_("Disable for good: everything they signed is refused (asks first)"))
    def disable(self, _request: HttpRequest, rows: QuerySet[Key]) -> HttpResponse:
        return ask_first("key", rows, ~Q(state=Key.State.DISABLED))


class KeyCertificateAdmin(ReadOnlyAdmin[KeyCertificate]):
    list_display = (
        "serial",
        "instance",
        "state",
        "issuer",
        "not_before",
        "usable_from",
        "not_after",
    )
    list_filter = ("state",)
    list_select_related = ("issuer",)
    ordering = ("-not_before",)
    actions = ("revoke",)

    @admin.action(
        description=_("Revoke for good: everything their keys signed is refused (asks first)")
    )
    def revoke(self, _request: HttpRequest, rows: QuerySet[KeyCertificate]) -> HttpResponse:
        return ask_first("key_certificate", rows, ~Q(state=KeyCertificate.State.REVOKED))


ADMINS: "list[tuple[type[Model], type[admin.ModelAdmin[Any]]]]" = [
    (Agent, AgentAdmin),
    (Grant, GrantAdmin),
    (ServiceProvider, ServiceProviderAdmin),
    (CatalogueVersion, CatalogueVersionAdmin),
    (Key, KeyAdmin),
    (KeyCertificate, KeyCertificateAdmin),
]
