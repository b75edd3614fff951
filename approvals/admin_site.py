"""The admin site: passkey sign-in, no passwords, read-only rows, actions that call services."""

import uuid
from typing import Any

from django.contrib import admin, messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, URLResolver, path, reverse
from django.utils import timezone
from django.utils.http import urlencode
from django.utils.translation import gettext_lazy as _
from django.views.decorators.http import require_safe

from agentauth.protocol.encoding import read_object
from agentauth.protocol.errors import (
    AgentAuthError,
    InvalidStateError,
    NotFoundError,
    TemporarilyUnavailableError,
)
from approvals.admin import ADMINS
from approvals.admin_details import DetailPages, row_page
from approvals.admin_forms import (
    CatalogueForm,
    ConfirmForm,
    EnrolmentForm,
    InvitationForm,
    RoleForm,
    ServiceProviderChangeForm,
    ServiceProviderForm,
)
from approvals.admin_label_translation import translate_names
from approvals.admin_lists import ListPages
from approvals.admin_permissions import RolePages, require_permission
from approvals.models import Recovery
from approvals.role_words import ROLES
from approvals.services.catalogue_approval_signing import proposed_catalogues
from approvals.services.human_row_locks import hold_human
from approvals.services.human_suspension_and_erasure import change_role
from approvals.services.log_break_signing import unsigned_breaks
from approvals.services.logo_approval_signing import proposed_logos
from approvals.services.operations_overview import read_overview
from approvals.services.reauthentication import acting
from approvals.services.setup_and_sign_in import create_setup_link
from approvals.views.log_status import describe_log, log_page
from approvals.views.reauthentication import check_verification
from approvals.views.request_helpers import human_of
from audit.admin import ADMINS as AUDIT_ADMINS
from audit.verify.log_status import read_log_status
from registry.admin import ADMINS as REGISTRY_ADMINS
from registry.authentication import actor_of
from registry.models import Grant, Human, ServiceProvider
from registry.refusal_recording import record_refused_request
from registry.refusal_translation import refusal_text
from registry.roles import Permission, role_named
from registry.services.catalogues import create_with_catalogue, propose_catalogue
from registry.services.enrolment_codes import create_enrolment_code
from registry.services.roles import CHANGED_MEANWHILE
from registry.services.service_providers import (
    change_allowed,
    change_audience,
    create_service_provider,
    end_previous_secrets,
    rotate_secret,
)

PENDING_SHOWN = 10


class ControlRoom(admin.AdminSite):
    """`/admin/`."""

    site_title = site_header = _("AgentAuth control room")
    index_title = _("Control room")
    index_template = "admin/control_room.html"
    enable_nav_sidebar = False

    def get_urls(self) -> list[URLPattern | URLResolver]:
        provider = "service-providers/<uuid:service_provider_id>"
        log = require_permission(require_safe(self.log), Permission.READ_ALL)
        ours: list[URLPattern | URLResolver] = [
            path("log/", self.admin_view(log), name="log"),
            *(
                path(place, self.admin_view(require_permission(view)), name=view.__name__)
                for place, view in (
                    ("invite/", self.invite),
                    ("enrolment-code/", self.enrolment_code),
                    ("humans/<uuid:human_id>/role/", self.change_role),
                    ("new-service-provider/", self.new_service_provider),
                    (f"{provider}/change/", self.change_service_provider),
                    (f"{provider}/rotate-secret/", self.rotate_secret),
                    (f"{provider}/end-previous-secrets/", self.end_previous_secrets),
                    ("new-catalogue/", self.new_catalogue),
                )
            ),
        ]
        # There are no passwords, so drop Django's pages to change one.
        theirs = [
            url
            for url in super().get_urls()
            if not str(getattr(url, "name", "")).startswith("password_change")
        ]
        return ours + theirs

    def login(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Redirect to the passkey sign-in, or to /approvals/ a human without a role."""
        if request.user.is_authenticated and not self.has_permission(request):
            return HttpResponseRedirect("/approvals/")
        wanted = request.GET.get("next") or reverse("admin:index")
        return HttpResponseRedirect(f"/sign-in/?{urlencode({'next': wanted})}")

    def logout(  # type: ignore[override]  # the stubs expect a page of the admin
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Redirect to /settings/: the admin's sign-out button posts to /sign-out/ instead."""
        return HttpResponseRedirect("/settings/")

    def has_permission(self, request: HttpRequest) -> bool:
        """Whether the human has a role. Each page then asks for the permission that it needs."""
        return bool(getattr(request.user, "permissions", None))

    def index(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> TemplateResponse:
        """The dashboard: what the role reads, and links to what it may do."""
        now, me = timezone.now(), human_of(request)
        waiting = Grant.objects.waiting(now).select_related(
            "agent", "agent__human", "service_provider"
        )
        context: dict[str, Any] = {
            "waiting": waiting.order_by("created_at")[:PENDING_SHOWN],
            "catalogues": proposed_catalogues(),
            "proposed_logos": proposed_logos(),
            "role": me.role and ROLES[me.role],
        }
        if Permission.READ_ALL in me.permissions:
            context |= {
                "overview": read_overview(now),
                "log": describe_log(read_log_status(now=now)),
                "unsigned_breaks": unsigned_breaks(),
                "recoveries": Recovery.objects.open(now).count(),
            }
        return super().index(request, context | (extra_context or {}))

    def log(self, request: HttpRequest) -> TemplateResponse:
        """Show the state of the log and how far its copies reach."""
        context = self.each_context(request) | {"title": _("Log"), "log": log_page(timezone.now())}
        return TemplateResponse(request, "admin/log.html", context)

    def invite(self, request: HttpRequest) -> HttpResponse:
        """Make a one-time setup link for a new human and show it once."""

        def make(form: InvitationForm) -> list[tuple[str, str]]:
            link = create_setup_link(
                email=form.cleaned_data["email"],
                role=role_named(form.cleaned_data["role"]),
                actor=actor_of(request),
                now=timezone.now(),
            )
            return [(str(_("Setup link (works once, for 72 hours)")), link.url)]

        return self._make(request, InvitationForm, _("Invite a human"), make)

    def change_role(self, request: HttpRequest, human_id: uuid.UUID) -> HttpResponse:
        """Give a human a role, change it or take it."""
        human = Human.objects.exclude(status=Human.Status.DELETED).filter(pk=human_id).first()
        if human is None:
            raise NotFoundError
        shown = human.named_role or ""

        def make(form: RoleForm) -> list[tuple[str, str]]:
            data = form.cleaned_data
            if data["shown_role"] != shown:
                raise InvalidStateError(CHANGED_MEANWHILE)
            change_role(
                human=human,
                role=role_named(data["role"]),
                by=human_of(request),
                actor=actor_of(request),
                now=timezone.now(),
            )
            messages.success(request, _("The role was changed. The person is signed out."))
            return []

        return self._make(
            request,
            RoleForm,
            _("Change the role"),
            make,
            about=human,
            initial={"role": shown, "shown_role": shown},
            says=_(
                "The new role applies at once: the person is signed out, and their invitations and "
                "the recoveries that they began or that are open for them end."
            ),
        )

    def enrolment_code(self, request: HttpRequest) -> HttpResponse:
        """Make a one-time enrolment code for a human and show it once."""

        def make(form: EnrolmentForm) -> list[tuple[str, str]]:
            human, actor = form.cleaned_data["human"], actor_of(request)
            hold_human(human_of(request), human)
            _row, code = create_enrolment_code(human=human, actor=actor, now=timezone.now())
            return [(str(_("Enrolment code (works once, for 15 minutes)")), code)]

        return self._make(request, EnrolmentForm, _("Create an enrolment code"), make)

    def new_service_provider(self, request: HttpRequest) -> HttpResponse:
        """Create a service provider and show its secret once."""

        def make(form: ServiceProviderForm) -> list[tuple[str, str]]:
            data = form.cleaned_data
            described = {
                "name": data["name"],
                "audience": data["audience"],
                "allowed": data["allowed"].split(),
                "is_auditor": data["is_auditor"],
                "require_nonce": data["require_nonce"],
                "actor": actor_of(request),
                "now": timezone.now(),
            }
            if words := data["catalogue"]:
                document = read_object(words)
                provider, secret = create_with_catalogue(document=document, **described)
            else:
                provider, secret = create_service_provider(**described)
            return [
                (str(_("Client id")), str(provider.pk)),
                (str(_("Client secret (not shown again)")), secret),
            ]

        return self._make(request, ServiceProviderForm, _("Create a service provider"), make)

    def change_service_provider(
        self, request: HttpRequest, service_provider_id: uuid.UUID
    ) -> HttpResponse:
        """Change where a service provider is, or what agents may ask for there."""
        provider = _service_provider(service_provider_id)
        shown = {"audience": provider.audience, "allowed": "\n".join(provider.allowed)}

        def make(form: ServiceProviderChangeForm) -> list[tuple[str, str]]:
            data, actor, now = form.cleaned_data, actor_of(request), timezone.now()
            if (data["shown_audience"], data["shown_allowed"].split()) != (
                provider.audience,
                provider.allowed,
            ):
                raise InvalidStateError(
                    "Another administrator changed this service provider meanwhile. Open the page "
                    "again."
                )
            suspended = change_audience(
                service_provider=provider, audience=data["audience"], actor=actor, now=now
            )
            allowed = data["allowed"].split()
            suspended += change_allowed(
                service_provider=provider, allowed=allowed, actor=actor, now=now
            )
            said = _("Saved. Grants that wait for a new signature: %(count)d.")
            messages.success(request, said % {"count": suspended})
            return []

        return self._make(
            request,
            ServiceProviderChangeForm,
            _("Change a service provider"),
            make,
            about=provider,
            initial=shown | {f"shown_{name}": value for name, value in shown.items()},
            says=_(
                "Tokens and approvals name the audience: if you change it, every grant here waits "
                "for a new signature. If you shorten the list, so do the grants beyond it."
            ),
        )

    def rotate_secret(self, request: HttpRequest, service_provider_id: uuid.UUID) -> HttpResponse:
        """Add a secret and show it once; the newest of the old ones stays valid."""
        provider = _service_provider(service_provider_id)

        def make(_form: ConfirmForm) -> list[tuple[str, str]]:
            secret = rotate_secret(
                service_provider=provider, actor=actor_of(request), now=timezone.now()
            )
            return [
                (str(_("Client id")), str(provider.pk)),
                (str(_("New client secret (not shown again)")), secret),
            ]

        return self._make(
            request,
            ConfirmForm,
            _("Rotate the secret"),
            make,
            about=provider,
            says=_(
                "You get a second secret. The present one stays valid until you end the previous "
                "secrets or rotate again, so that the service provider can change over without a "
                "pause."
            ),
        )

    def end_previous_secrets(
        self, request: HttpRequest, service_provider_id: uuid.UUID
    ) -> HttpResponse:
        """End every secret but the newest."""
        provider = _service_provider(service_provider_id)

        def make(_form: ConfirmForm) -> list[tuple[str, str]]:
            ended = end_previous_secrets(
                service_provider=provider, actor=actor_of(request), now=timezone.now()
            )
            messages.success(request, _("Secrets ended: %(count)d.") % {"count": ended})
            return []

        return self._make(
            request,
            ConfirmForm,
            _("End the previous secrets"),
            make,
            about=provider,
            says=_(
                "Only the newest secret stays valid. If the service provider still uses an older "
                "one, its calls are refused from now on. This cannot be undone."
            ),
        )

    def new_catalogue(self, request: HttpRequest) -> HttpResponse:
        """Propose the words of a service provider for it, then lead to their approval."""

        def make(form: CatalogueForm) -> HttpResponse:
            row, _is_new = propose_catalogue(
                service_provider=form.cleaned_data["service_provider"],
                document=read_object(form.cleaned_data["catalogue"]),
                actor=actor_of(request),
                now=timezone.now(),
            )
            return HttpResponseRedirect(f"/catalogues/{row.pk}/")

        return self._make(request, CatalogueForm, _("Propose a service’s words"), make)

    def _make(
        self,
        request: HttpRequest,
        form_class: type[Any],
        title: Any,
        make: Any,
        *,
        about: ServiceProvider | Human | None = None,
        **more: Any,
    ) -> HttpResponse:
        """Show the form, call the service, show its result once; the session keeps none of it.

        A result that is a page is returned as it is. If there is nothing to show, go to the page of
        the row that it is `about`.
        """
        posted = request.POST if request.method == "POST" else None
        form = form_class(posted, label_suffix="", initial=more.get("initial"))
        made = None
        if request.method == "POST" and form.is_valid():
            # These secrets give access, so a stolen session alone must not be able to make them.
            check_verification(request)
            try:
                with acting(human_of(request)):
                    made = make(form)
                if isinstance(made, HttpResponse):
                    return made
            except (TemporarilyUnavailableError, NotFoundError):
                raise
            except AgentAuthError as error:
                record_refused_request(request, error)
                messages.error(request, refusal_text(error))
            else:
                if about is not None and not made:
                    return HttpResponseRedirect(row_page(about))
        context = self.each_context(request) | {
            "title": title,
            "form": form,
            "made": made,
            "about": about,
            "about_address": about.email if isinstance(about, Human) else about and about.audience,
            "back": row_page(about) if about else reverse("admin:index"),
            "says": more.get("says", ""),
        }
        return TemplateResponse(request, "admin/make.html", context)


site = ControlRoom(name="admin")


def _service_provider(pk: uuid.UUID) -> ServiceProvider:
    found = ServiceProvider.objects.filter(pk=pk).first()
    if found is None:
        raise NotFoundError
    return found


_ADMINS: list[tuple[Any, Any]] = [*ADMINS, *REGISTRY_ADMINS, *AUDIT_ADMINS]
for _model, _model_admin in _ADMINS:
    _bases = (RolePages, ListPages, DetailPages, _model_admin)
    site.register(_model, type(_model_admin.__name__, _bases, {}))
    translate_names(_model)
