"""The admin site: passkey sign-in, no passwords, read-only rows, actions that call services."""

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, URLResolver, path, reverse
from django.utils import timezone
from django.utils.http import urlencode
from django.utils.translation import gettext_lazy as _
from django.views.decorators.http import require_safe

from agentauth.protocol.errors import AgentAuthError, NotFoundError, TemporarilyUnavailableError
from approvals.admin import ADMINS
from approvals.models import Recovery
from approvals.services.human_locking import hold_human
from approvals.services.log_break_signing import unsigned_breaks
from approvals.services.reauthentication import acting
from approvals.services.setup_and_sign_in import create_setup_link
from approvals.views.log_status import log_page
from approvals.views.page_requests import human_of
from approvals.views.reauthentication import check_verification
from audit.admin import ADMINS as AUDIT_ADMINS
from registry.admin import ADMINS as REGISTRY_ADMINS
from registry.authentication import actor_of
from registry.models import Agent, Grant, Human
from registry.refusal_recording import record_refused_request
from registry.services.enrolment_codes import create_enrolment_code
from registry.services.service_providers import create_service_provider

PENDING_SHOWN = 25


class InvitationForm(forms.Form):
    """The human to invite."""

    email = forms.EmailField(label=_("E-mail"))


class EnrolmentForm(forms.Form):
    """The human who gets an enrolment code."""

    human = forms.ModelChoiceField(
        Human.objects.filter(status=Human.Status.ACTIVE), label=_("Human")
    )


class ServiceProviderForm(forms.Form):
    """A new service provider."""

    name = forms.CharField(label=_("Name"), max_length=80)
    audience = forms.CharField(
        label=_("Audience URL"), max_length=255, help_text=_("https, without a final slash")
    )
    allowed = forms.CharField(
        label=_("What agents may ask for"),
        required=False,
        widget=forms.Textarea(attrs={"rows": 4}),
        help_text=_("One entry per line, such as read:calendar. Empty allows nothing."),
    )
    is_auditor = forms.BooleanField(label=_("May read the whole audit log"), required=False)
    require_nonce = forms.BooleanField(label=_("Proofs must carry a server nonce"), required=False)


class ControlRoom(admin.AdminSite):
    """`/admin/`."""

    site_title = site_header = _("AgentAuth control room")
    index_title = _("Control room")
    index_template = "admin/control_room.html"
    enable_nav_sidebar = False

    def get_urls(self) -> list[URLPattern | URLResolver]:
        ours: list[URLPattern | URLResolver] = [
            path("log/", self.admin_view(require_safe(self.log)), name="log"),
            path("invite/", self.admin_view(self.invite), name="invite"),
            path("enrolment-code/", self.admin_view(self.enrolment_code), name="enrolment_code"),
            path(
                "new-service-provider/",
                self.admin_view(self.new_service_provider),
                name="new_service_provider",
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
        """Redirect to the passkey sign-in, or to /approvals/ a human without admin rights."""
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
        return bool(request.user.is_active and getattr(request.user, "is_administrator", False))

    def index(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> TemplateResponse:
        now = timezone.now()
        waiting = Grant.objects.waiting(now).select_related(
            "agent", "agent__human", "service_provider"
        )
        counts = {
            status.label: Agent.objects.filter(status=status).count() for status in Agent.Status
        }
        context = {
            "waiting": waiting.order_by("created_at")[:PENDING_SHOWN],
            "agent_counts": counts,
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
                email=form.cleaned_data["email"], actor=actor_of(request), now=timezone.now()
            )
            return [(str(_("Setup link (works once, for 72 hours)")), link.url)]

        return self._make(request, InvitationForm, _("Invite a human"), make)

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
            provider, secret = create_service_provider(
                name=data["name"],
                audience=data["audience"],
                allowed=data["allowed"].split(),
                is_auditor=data["is_auditor"],
                require_nonce=data["require_nonce"],
                actor=actor_of(request),
                now=timezone.now(),
            )
            return [
                (str(_("Client id")), str(provider.pk)),
                (str(_("Client secret (not shown again)")), secret),
            ]

        return self._make(request, ServiceProviderForm, _("Create a service provider"), make)

    def _make(
        self, request: HttpRequest, form_class: type[Any], title: Any, make: Any
    ) -> HttpResponse:
        """Show the form, call the service, show its result once; the session keeps none of it."""
        form, made = form_class(request.POST or None, label_suffix=""), None
        if request.method == "POST" and form.is_valid():
            # These secrets give access, so a stolen session alone must not be able to make them.
            check_verification(request)
            try:
                with acting(human_of(request)):
                    made = make(form)
            except (TemporarilyUnavailableError, NotFoundError):
                raise
            except AgentAuthError as error:
                record_refused_request(request, error)
                messages.error(request, error.description)
        context = self.each_context(request) | {"title": title, "form": form, "made": made}
        return TemplateResponse(request, "admin/make.html", context)


site = ControlRoom(name="admin")
_ADMINS: list[tuple[Any, Any]] = [*ADMINS, *REGISTRY_ADMINS, *AUDIT_ADMINS]
for _model, _model_admin in _ADMINS:
    site.register(_model, _model_admin)
