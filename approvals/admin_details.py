"""The control room's page of one row: facts, actions, related rows and events."""

import json
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from django.contrib import admin
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.utils import label_for_field, lookup_field, quote
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils import timezone
from django.utils.http import urlencode
from django.utils.text import capfirst
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from agentauth.protocol.untrusted_text import legible
from approvals.admin_permissions import may_read
from approvals.models import Notification, Passkey, SetupCode
from approvals.templatetags.display_filters import exact
from approvals.views.activity_search import NO_ONE
from approvals.views.event_sentences import describe_events
from approvals.views.paging import newest_events
from approvals.views.request_helpers import human_of
from audit.admin import acts_on_key, acts_on_service_provider
from audit.models import Event
from kms.models import Key, KeyCertificate
from registry.models import Agent, Grant, Human, ServiceProvider
from registry.roles import Permission

EVENTS_SHOWN: Final = 20
SECRETS_SHOWN: Final = 20
# A fact with more characters is shown folded.
_SHORT: Final = 120
# Actions that a row's page shows last, in red: they end the row for good. `deny` is not one: the
# agent can make its request again.
_ENDS: Final = {"revoke", "disable", "delete", "forget"}


class Link(NamedTuple):
    """A related row or list; plain text if `url` is empty."""

    label: str
    text: str
    url: str = ""
    # The model whose rows `url` shows. For a reader without permission, the link becomes text.
    model: type[Model] | None = None


class Fact(NamedTuple):
    """One column of the row. A long one is folded."""

    label: str
    text: str
    url: str = ""
    is_long: bool = False


class Button(NamedTuple):
    """An act on the row: an action of its list, or (with `url`) a page of its own."""

    label: Any
    action: str = ""
    url: str = ""

    @property
    def is_end(self) -> bool:
        """Whether the page shows it last, in red."""
        return self.action in _ENDS


_IsOffered = Callable[[Any, datetime], bool]
# Every action of the site: its name on a row's page, and the rows for which it is offered. The
# service decides again: for other rows it refuses or changes nothing.
ACTIONS: Final[dict[tuple[type[Model], str], tuple[Any, _IsOffered]]] = {
    (Agent, "suspend"): (
        gettext_lazy("Suspend agent"),
        lambda row, now: (
            row.human_id is not None
            and row.status_at(now) in {"active", "expired", "suspended"}
            and not row.admin_holds
        ),
    ),
    (Agent, "resume"): (gettext_lazy("Resume agent …"), lambda row, _now: row.admin_holds),
    (Agent, "revoke"): (
        gettext_lazy("Revoke agent …"),
        lambda row, _now: row.status != Agent.Status.REVOKED,
    ),
    (Grant, "deny"): (
        gettext_lazy("Deny request …"),
        lambda row, now: row.status_at(now) == Grant.Status.PENDING,
    ),
    (Grant, "suspend"): (
        gettext_lazy("Suspend grant"),
        lambda row, now: row.status_at(now) in {"approved", "suspended"} and not row.admin_holds,
    ),
    (Grant, "resume"): (gettext_lazy("Resume grant …"), lambda row, _now: row.admin_holds),
    (Grant, "revoke"): (
        gettext_lazy("Revoke grant …"),
        lambda row, now: row.status_at(now) in {"approved", "suspended"},
    ),
    (Human, "suspend"): (
        gettext_lazy("Suspend human"),
        lambda row, _now: row.status == Human.Status.ACTIVE,
    ),
    (Human, "resume"): (
        gettext_lazy("Resume human …"),
        lambda row, _now: row.status == Human.Status.SUSPENDED,
    ),
    (Human, "end_sessions"): (
        gettext_lazy("Sign out everywhere"),
        lambda row, _now: row.status == Human.Status.ACTIVE,
    ),
    (Human, "delete"): (
        gettext_lazy("Delete human …"),
        lambda row, _now: row.status != Human.Status.DELETED,
    ),
    (ServiceProvider, "suspend"): (
        gettext_lazy("Suspend service provider"),
        lambda row, _now: row.is_active,
    ),
    (ServiceProvider, "resume"): (
        gettext_lazy("Resume service provider …"),
        lambda row, _now: row.status == ServiceProvider.Status.SUSPENDED,
    ),
    (ServiceProvider, "revoke"): (
        gettext_lazy("Revoke service provider …"),
        lambda row, _now: row.status != ServiceProvider.Status.REVOKED,
    ),
    (Key, "rotate"): (
        gettext_lazy("Publish the next key"),
        lambda row, _now: row.state == Key.State.ACTIVE,
    ),
    (Key, "disable"): (
        gettext_lazy("Disable key …"),
        lambda row, _now: row.state != Key.State.DISABLED,
    ),
    (KeyCertificate, "revoke"): (
        gettext_lazy("Revoke certificate …"),
        lambda row, _now: row.state != KeyCertificate.State.REVOKED,
    ),
    (SetupCode, "forget"): (
        gettext_lazy("Forget invitation …"),
        lambda row, _now: row.used_at is None,
    ),
    (Notification, "send_again"): (
        gettext_lazy("Send again"),
        lambda row, now: row.state == Notification.State.DEAD and row.expires_at > now,
    ),
}


def row_page(row: Model) -> str:
    """The address of a row's page in the control room."""
    opts = row._meta  # noqa: SLF001 — public in Django
    return reverse(f"admin:{opts.app_label}_{opts.model_name}_change", args=[quote(row.pk)])


def list_page(model: type[Model], **filters: Any) -> str:
    """The address of a filtered list."""
    opts = model._meta  # noqa: SLF001 — public in Django
    address = reverse(f"admin:{opts.app_label}_{opts.model_name}_changelist")
    return f"{address}?{urlencode(filters)}" if filters else address


def _link_to(label: str, row: Model | None) -> list[Link]:
    return [] if row is None else [Link(label, legible(str(row)), row_page(row), type(row))]


def _of_agent(row: Agent) -> list[Link]:
    return [
        *_link_to(_("Owner"), row.human),
        Link(_("Grants"), _("Requests and grants"), list_page(Grant, agent__id__exact=row.pk)),
    ]


def _of_grant(row: Grant) -> list[Link]:
    return [
        *_link_to(_("Agent"), row.agent),
        *_link_to(_("Owner"), row.agent.human),
        *_link_to(_("Service provider"), row.service_provider),
        *_link_to(_("Decided by"), row.human),
    ]


def _of_human(row: Human) -> list[Link]:
    passkeys = Passkey.objects.filter(human=row).count()
    found = [
        Link(_("Agents"), _("Their agents"), list_page(Agent, human__id__exact=row.pk)),
        Link(_("Grants"), _("Of their agents"), list_page(Grant, agent__human__id__exact=row.pk)),
        Link(
            _("Decisions"), _("Grants they decided on"), list_page(Grant, human__id__exact=row.pk)
        ),
        Link(_("Passkeys"), str(passkeys)),
    ]
    if row.status != Human.Status.DELETED:
        found.append(Link(_("Recovery"), _("Recover the account"), f"/recoveries/{row.pk}/"))
    return found


def _of_provider(row: ServiceProvider) -> list[Link]:
    grants = list_page(Grant, service_provider__id__exact=row.pk)
    return [Link(_("Grants"), _("Requests and grants"), grants)]


def _of_key(row: Key) -> list[Link]:
    certificates = list_page(KeyCertificate, issuer__id__exact=row.pk)
    found = [Link(_("Keys"), _("Of this purpose"), list_page(Key, purpose__exact=row.purpose))]
    if Key.Purpose(row.purpose) is Key.Purpose.TOKEN:
        found.append(Link(_("Certificates"), _("Signed by this key"), certificates))
    if Key.Purpose(row.purpose) is Key.Purpose.AUDIT:
        found.append(Link(_("Log"), _("State of the log"), reverse("admin:log")))
    return found


def _of_event(row: Event) -> list[Link]:
    # Rows may be gone; events outlive them.
    return [
        *_link_to(_("Agent"), Agent.objects.filter(pk=row.agent_id or NO_ONE).first()),
        *_link_to(_("Grant"), Grant.objects.filter(pk=row.grant_id or NO_ONE).first()),
        *_link_to(_("Human"), Human.objects.filter(pk=row.human_id or NO_ONE).first()),
        *_link_to(
            _("Service provider"),
            ServiceProvider.objects.filter(pk=row.service_provider_id or NO_ONE).first(),
        ),
    ]


_RELATED: Final[dict[type[Model], Callable[[Any], list[Link]]]] = {
    Agent: _of_agent,
    Grant: _of_grant,
    Human: _of_human,
    ServiceProvider: _of_provider,
    Key: _of_key,
    KeyCertificate: lambda row: _link_to(_("Issued by"), row.issuer),
    Event: _of_event,
    SetupCode: lambda row: _link_to(_("Human"), row.human),
    Notification: lambda row: _link_to(_("Human"), row.channel.human),
}


_EVENTS_OF: Final[dict[type[Model], Callable[[Any], QuerySet[Event]]]] = {
    Agent: lambda row: newest_events("agent_id", row.pk),
    Grant: lambda row: newest_events("grant_id", row.pk),
    Human: lambda row: newest_events("human_id", row.pk),
    ServiceProvider: lambda row: acts_on_service_provider(row.pk).order_by("-pk"),
    Key: lambda row: acts_on_key(row.kid).order_by("-pk"),
}


def _pages_of(row: Model) -> list[Button]:
    """Pages for acts on the row, for owners only."""
    if isinstance(row, Human) and row.status != Human.Status.DELETED:
        return [Button(_("Change role"), url=reverse("admin:change_role", args=[row.pk]))]
    if not isinstance(row, ServiceProvider) or row.status == ServiceProvider.Status.REVOKED:
        return []
    names = {
        "change_service_provider": _("Change audience or allow-list"),
        "rotate_secret": _("Rotate secret"),
    }
    if row.secrets.filter(revoked_at=None).count() > 1:
        names["end_previous_secrets"] = _("End previous secrets")
    return [
        *(
            Button(label, url=reverse(f"admin:{name}", args=[row.pk]))
            for name, label in names.items()
        ),
        Button(_("Change logo"), url=f"/logos/{row.pk}/"),
    ]


if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[Any]
else:
    _ModelAdmin = object


class DetailPages(_ModelAdmin):
    """For a ModelAdmin of the control room: the page of each of its rows."""

    change_form_template = "admin/row.html"

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> Any:
        """Django's view with what this page adds; it refuses unknown rows and every POST."""
        row = self.get_object(request, object_id) if object_id else None
        more = {} if row is None or request.method == "POST" else self._page_context(request, row)
        return super().changeform_view(request, object_id, form_url, more | (extra_context or {}))

    def _page_context(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        events_of = _EVENTS_OF.get(type(row))
        events = None if events_of is None else list(events_of(row)[:EVENTS_SHOWN])
        described: Sequence[Event] = [row] if isinstance(row, Event) else []
        return {
            "title": legible(_title(row)),
            "facts": [
                Fact(_("Id"), str(row.pk)),
                *(_fact(self, request, row, str(name)) for name in self.get_fields(request, row)),
            ],
            "subtitle": "",
            "buttons": self._buttons(request, row),
            "related": [_readable(request, each) for each in _RELATED[type(row)](row)]
            if type(row) in _RELATED
            else [],
            "secrets": list(row.secrets.order_by("-created_at", "-pk")[:SECRETS_SHOWN])
            if isinstance(row, ServiceProvider)
            else None,
            "sentences": describe_events(described),
            "lines": None if events is None else describe_events(events),
            "all_events": list_page(Event, q=_searched(row)),
        }

    def _buttons(self, request: HttpRequest, row: Any) -> list[Button]:
        now, me = timezone.now(), human_of(request)
        is_owner = Permission.OWN in me.permissions
        found = _pages_of(row) if is_owner and row.pk != me.pk else []
        # Only an owner may act on an administrator.
        may_act = is_owner or not (isinstance(row, Human) and row.named_role)
        for action in self.get_actions(request) if may_act else ():
            label, offered = ACTIONS[type(row), action]
            if offered(row, now):
                found.append(Button(label, action))
        return sorted(found, key=lambda button: button.is_end)

    def response_action(  # type: ignore[override]  # the stubs have a parameter of Django 6
        self, request: HttpRequest, queryset: Any
    ) -> HttpResponse | None:
        """As Django's, but returns to the row's page if the button was there."""
        done: HttpResponse | None = super().response_action(request, queryset)
        chosen = request.POST.getlist(ACTION_CHECKBOX_NAME)
        is_list = isinstance(done, HttpResponseRedirect) and done.url == request.get_full_path()
        if is_list and "from_row" in request.POST and len(chosen) == 1:
            name = f"admin:{self.opts.app_label}_{self.opts.model_name}_change"
            return HttpResponseRedirect(reverse(name, args=[quote(chosen[0])]))
        return done


def _title(row: Model) -> str:
    if isinstance(row, Grant):
        return _("%(agent)s at %(at)s") % {"agent": row.agent, "at": row.service_provider}
    return str(row)


def _readable(request: HttpRequest, link: Link) -> Link:
    """The link, without its address for a reader whose role may not open it."""
    if link.model is None or may_read(request, link.model):
        return link
    return link._replace(url="")


def _fact(model_admin: Any, request: HttpRequest, row: Model, name: str) -> Fact:
    """One column or computed value, as text."""
    field, _attribute, value = lookup_field(name, row, model_admin)
    label = capfirst(str(label_for_field(name, type(row), model_admin)))
    if value is None or value in ("", [], {}):
        return Fact(label, "")
    if isinstance(value, Model):
        is_shown = model_admin.admin_site.is_registered(type(value)) and may_read(
            request, type(value)
        )
        return Fact(label, legible(str(value)), row_page(value) if is_shown else "")
    if isinstance(value, bool):
        return Fact(label, _("yes") if value else _("no"))
    if isinstance(value, datetime):
        return Fact(label, exact(value))
    if isinstance(value, (dict, list)):
        return Fact(label, _legible_json(value), is_long=True)
    choices = dict(field.flatchoices) if field is not None and field.flatchoices else {}
    text = legible(str(choices.get(value, value)))
    return Fact(label, text, is_long=len(text) > _SHORT)


def _legible_json(value: Any) -> str:
    """Indented JSON, in which characters that are not displayed as themselves are escaped."""
    written = json.dumps(value, indent=2, ensure_ascii=False)
    # Without the line ends and the backslashes, which JSON escapes itself.
    return re.sub(r"[^\\\n]+", lambda found: legible(found[0]), written)


def _searched(row: Model) -> str:
    """The search term that finds this row's events in the list of events."""
    return row.kid if isinstance(row, Key) else str(row.pk)
