"""Groups, rules and absences for administrators; each person's own absences."""

import uuid
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final

from django.contrib import messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST, require_safe

from agentauth.protocol.errors import (
    AgentAuthError,
    InvalidRequestError,
    InvalidStateError,
    NotFoundError,
    TemporarilyUnavailableError,
)
from agentauth.protocol.money import MINOR_DIGITS, Money
from approvals.services.human_row_locks import hold_human
from approvals.services.reauthentication import acting
from approvals.services.term_field_parsing import read_money
from approvals.services.typed_local_time import moment_typed
from approvals.views import settings
from approvals.views.approvers_in_words import describe_approvers, preview
from approvals.views.paging import id_or_none_of_ours
from approvals.views.reauthentication import check_verification
from approvals.views.request_helpers import human_of, require_sign_in
from registry.authentication import actor_of
from registry.models import (
    Absence,
    ApprovalRule,
    ApproverGroup,
    GroupMember,
    Human,
    ServiceProvider,
)
from registry.refusal_recording import record_refused_request
from registry.refusal_translation import refusal_text
from registry.roles import Permission
from registry.services import approvers
from registry.services.roles import check_permission

_MINUTES: Final = 3


@require_safe
@require_sign_in
def page(request: HttpRequest) -> HttpResponse:
    check_permission(human_of(request), Permission.READ_ALL)
    return _page(request)


@require_POST
@require_sign_in
def add_group(request: HttpRequest) -> HttpResponse:
    def act(now: datetime) -> str:
        approvers.create_group(**_group_fields(request), actor=actor_of(request), now=now)
        return _("Group created. Now add its members.")

    return _signed(request, "group", act)


@require_POST
@require_sign_in
def change_group(request: HttpRequest, group_id: uuid.UUID) -> HttpResponse:
    def act(now: datetime) -> str:
        group = _find(ApproverGroup, group_id)
        approvers.change_group(
            group=group, **_group_fields(request), actor=actor_of(request), now=now
        )
        return _("Group changed")

    return _signed(request, f"group-{group_id}", act)


@require_POST
@require_sign_in
def remove_group(request: HttpRequest, group_id: uuid.UUID) -> HttpResponse:
    def act(now: datetime) -> str:
        group = _find(ApproverGroup, group_id)
        approvers.remove_group(group=group, actor=actor_of(request), now=now)
        return _("Group removed")

    return _by_session(request, f"group-{group_id}", act)


@require_POST
@require_sign_in
def add_member(request: HttpRequest, group_id: uuid.UUID) -> HttpResponse:
    def act(now: datetime) -> str:
        group, human = _find(ApproverGroup, group_id), _person(request, "human")
        # A concurrent deletion of this human either finds the new row or aborts this act.
        hold_human(human_of(request), human)
        approvers.add_member(group=group, human=human, actor=actor_of(request), now=now)
        return _("Member added")

    return _signed(request, f"group-{group_id}", act)


@require_POST
@require_sign_in
def remove_member(request: HttpRequest, member_id: uuid.UUID) -> HttpResponse:
    def act(now: datetime) -> str:
        member = _find(GroupMember, member_id)
        approvers.remove_member(member=member, actor=actor_of(request), now=now)
        return _("Member removed. What they decided stays as it is.")

    return _by_session(request, "", act)


@require_POST
@require_sign_in
def add_rule(request: HttpRequest) -> HttpResponse:
    def act(now: datetime) -> str:
        sent = request.POST
        approvers.create_rule(
            name=sent.get("name", "").strip(),
            group=_chosen(ApproverGroup, sent.get("group", ""), _("Choose a group.")),
            service_provider=_chosen_or_none(ServiceProvider, sent.get("service", "")),
            action_type=sent.get("type", ""),
            above=_amount(sent),
            before=_chosen_or_none(ApprovalRule, sent.get("before", "")),
            actor=actor_of(request),
            now=now,
        )
        return _("Rule added. It also applies to requests that wait.")

    return _signed(request, "rule", act)


@require_POST
@require_sign_in
def move_rule(request: HttpRequest, rule_id: uuid.UUID, other_id: uuid.UUID) -> HttpResponse:
    """Takes a signature, whose address names both rules: other people may decide afterwards."""

    def act(now: datetime) -> str:
        approvers.move_rule(
            rule=_find(ApprovalRule, rule_id),
            before=_find(ApprovalRule, other_id),
            actor=actor_of(request),
            now=now,
        )
        return _("Order changed. It also applies to requests that wait.")

    return _signed(request, "", act)


@require_POST
@require_sign_in
def end_rule(request: HttpRequest, rule_id: uuid.UUID) -> HttpResponse:
    """Takes a signature: other people may decide afterwards, often only the agents' owners."""

    def act(now: datetime) -> str:
        approvers.end_rule(rule=_find(ApprovalRule, rule_id), actor=actor_of(request), now=now)
        return _("Rule ended")

    return _signed(request, "", act)


@require_POST
@require_sign_in
def add_absence(request: HttpRequest) -> HttpResponse:
    """An administrator enters it for any person, with or without a deputy."""

    def act(now: datetime) -> str:
        deputy = _person(request, "deputy") if request.POST.get("deputy") else None
        _set_absence(request, _person(request, "human"), deputy, now)
        return _("Absence saved")

    return _signed(request, "absence", act)


@require_POST
@require_sign_in
def remove_absence(request: HttpRequest, away_id: uuid.UUID) -> HttpResponse:
    def act(now: datetime) -> str:
        absence = _find(Absence, away_id)
        approvers.end_absence(absence=absence, actor=actor_of(request), now=now)
        return _("Absence removed")

    return _by_session(request, "", act)


@require_POST
@require_sign_in
def add_own_absence(request: HttpRequest) -> HttpResponse:
    """Without a deputy, since only an administrator names one. It gives no permission."""
    try:
        with acting(human_of(request)):
            _set_absence(request, human_of(request), None, timezone.now())
    except (InvalidRequestError, InvalidStateError) as error:
        record_refused_request(request, error)
        return settings.render_page(
            request, absence_error=refusal_text(error), typed=request.POST, status=400
        )
    messages.success(request, _("Absence saved. Until it ends, others decide in your groups."))
    return HttpResponseRedirect("/settings/#absences")


@require_POST
@require_sign_in
def remove_own_absence(request: HttpRequest, absence_id: uuid.UUID) -> HttpResponse:
    absence = Absence.objects.filter(human=human_of(request), pk=absence_id).first()
    if absence is None:
        raise NotFoundError
    approvers.end_absence(absence=absence, actor=actor_of(request), now=timezone.now())
    messages.success(request, _("Absence removed"))
    return HttpResponseRedirect("/settings/#absences")


def _signed(request: HttpRequest, section: str, act: Callable[[datetime], str]) -> HttpResponse:
    """Run an act that lets others decide: it takes an owner's passkey."""
    check_permission(human_of(request), Permission.OWN)
    check_verification(request)
    return _run(request, section, act)


def _by_session(request: HttpRequest, section: str, act: Callable[[datetime], str]) -> HttpResponse:
    check_permission(human_of(request), Permission.OWN)
    return _run(request, section, act)


def _run(request: HttpRequest, section: str, act: Callable[[datetime], str]) -> HttpResponse:
    """Run it in one transaction; if it is refused, show the page again with what was typed."""
    try:
        with acting(human_of(request)):
            word = act(timezone.now())
    except (TemporarilyUnavailableError, NotFoundError):
        raise
    except AgentAuthError as error:
        record_refused_request(request, error)
        return _page(
            request, refused=refusal_text(error), section=section, typed=request.POST, status=400
        )
    messages.success(request, word)
    return HttpResponseRedirect("/approvers/")


def _page(request: HttpRequest, *, status: int = 200, **more: Any) -> HttpResponse:
    human, now = human_of(request), timezone.now()
    context = describe_approvers(human, now) | {
        "human": human,
        "asked": request.GET,
        "is_owner": Permission.OWN in human.permissions,
    }
    if "amount" in request.GET:
        try:
            context["preview"] = preview(
                service=_chosen_or_none(ServiceProvider, request.GET.get("service", "")),
                action_type=request.GET.get("type", ""),
                # The form shows this currency where the address has none.
                amount=_amount({"currency": "EUR"} | request.GET.dict()),
                reader=human,
                now=now,
            )
        except InvalidRequestError as error:
            context["preview_error"] = refusal_text(error)
    return render(request, "approvers.html", context | more, status=status)


def _group_fields(request: HttpRequest) -> dict[str, Any]:
    sent = request.POST
    wait = sent.get("wait", "")
    if not (wait.isascii() and wait.isdecimal() and len(wait) <= _MINUTES):
        raise InvalidRequestError(_("Write the time to answer as a number of minutes."))
    return {
        "name": sent.get("name", "").strip(),
        "wait_minutes": int(wait),
        "next_group": _chosen_or_none(ApproverGroup, sent.get("next", "")),
    }


def _amount(sent: Mapping[str, Any]) -> Money | None:
    value = str(sent.get("amount", "")).strip()
    if not value:
        return None
    currency = str(sent.get("currency", "")).strip().upper()
    if currency not in MINOR_DIGITS:
        raise InvalidRequestError(_("Write the currency as three letters, such as EUR."))
    return read_money(value, currency, zero=True)


def _set_absence(request: HttpRequest, human: Human, deputy: Human | None, now: datetime) -> None:
    me = human_of(request)
    zone, others = me.time_zone, {human, *filter(None, [deputy])} - {me}
    hold_human(me, *others)
    approvers.set_absence(
        human=human,
        starts_at=moment_typed(request.POST.get("from", ""), zone, is_end=False),
        ends_at=moment_typed(request.POST.get("until", ""), zone, is_end=True),
        deputy=deputy,
        actor=actor_of(request),
        now=now,
    )


def _person(request: HttpRequest, name: str) -> Human:
    human: Human = _chosen(Human, request.POST.get(name, ""), _("Choose a person."))
    return human


def _chosen(model: Any, text: str, otherwise: str) -> Any:
    row = model.objects.filter(pk=id_or_none_of_ours(text)).first()
    if row is None:
        raise InvalidRequestError(otherwise)
    return row


def _chosen_or_none(model: Any, text: str) -> Any:
    return _chosen(model, text, _("Choose one from the list.")) if text else None


def _find(model: Any, pk: uuid.UUID) -> Any:
    row = model.objects.filter(pk=pk).first()
    if row is None:
        raise NotFoundError
    return row
