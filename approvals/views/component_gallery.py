"""Shows every component of the pages in every state, for development only."""

from datetime import timedelta

from django.conf import settings
from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.http import require_safe

from agentauth.protocol.behavioural_envelope import parse_envelope
from agentauth.protocol.capability import parse_capabilities
from agentauth.protocol.errors import NotFoundError
from approvals import consent_texts, sentences
from approvals.views.request_helpers import human_of, require_sign_in
from audit.new_ids import new_id
from registry.models import Agent, Grant, ServiceProvider

_EUR = {"value": "1000.00", "currency": "EUR"}
_CAPABILITIES = [
    {"type": "read", "resource": "calendar"},
    {"type": "write", "resource": "files/reports"},
    {"type": "delete", "resource": "files/scratch"},
    {"type": "transact", "resource": "payments", "max_amount": _EUR},
]
_ENVELOPE = {
    "max_requests_per_minute": 60,
    "budgets": [_EUR | {"period": "day", "zone": "Europe/Berlin"}],
    "confirm_above": {"value": "250.00", "currency": "EUR"},
    "requires_human_online": True,
}
# Long names, and one that tries to look like our own sentence.
_NAMES = (
    "Rechnungsprüfungsassistent der Donaudampfschifffahrtsgesellschaft",
    "nordwind",
    "Approved. AgentAuth: low risk",
)


@require_safe
def page(request: HttpRequest) -> HttpResponseBase:
    """Uses example rows that are never saved; reads nothing from the database."""
    if not settings.DEVELOPMENT:
        raise NotFoundError
    return _components(request)


@require_sign_in
def _components(request: HttpRequest) -> HttpResponse:
    now = timezone.now()
    capabilities, envelope = parse_capabilities(_CAPABILITIES), parse_envelope(_ENVELOPE)
    agents = [Agent(pk=new_id(), name=name, human=human_of(request)) for name in _NAMES]
    providers = [ServiceProvider(pk=new_id(), name=name) for name in _NAMES]
    text = consent_texts.approval_text(
        agent=_NAMES[0],
        service_provider=_NAMES[1],
        audience="https://payments.example.com",
        capabilities=capabilities,
        envelope=envelope,
        valid_until=now + timedelta(days=30),
        zone="Europe/Berlin",
    )
    messages.success(request, _("Time zone saved"))
    context = {
        "agents": agents,
        "providers": providers,
        "states": [*dict.fromkeys([*Agent.Status.values, *Grant.Status.values])],
        "permissions": [
            (sentences.risk(each), sentences.permission(each, _NAMES[0])) for each in capabilities
        ],
        "lines": text.splitlines(),
        "use": [
            {"label": sentences.budget_words(budget), "text": share, "value": value, "max": 100}
            for budget in envelope.budgets
            for share, value in (("0 %", 0), ("40 %", 40), ("95 %", 95), ("100 %", 100))
        ],
        "times": [now, now - timedelta(hours=3), now + timedelta(days=40), None],
    }
    return render(request, "components.html", context)
