"""What an agent did, or was refused, in one sentence for each decision and confirmation."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from agentauth.protocol.argument_constraint import Scalar
from agentauth.protocol.capability import PAYEE, Action, parse_action
from agentauth.protocol.catalogue import NO_CATALOGUE, Catalogue
from agentauth.protocol.errors import AgentAuthError
from agentauth.protocol.money import Money
from agentauth.protocol.untrusted_text import MAX_NAME
from approvals import sentences
from approvals.catalogue_words import in_brief
from approvals.quotation_marks import quoted
from audit import kinds
from audit.log.event_encoding import is_committed
from audit.models import Event

ACTS: Final = (
    kinds.DECISION_ALLOWED,
    kinds.DECISION_DENIED,
    kinds.DECISION_REPEATED,
    kinds.DECISION_REHEARSED,
)
CONFIRMATIONS: Final = (
    kinds.CONFIRMATION_REQUESTED,
    kinds.CONFIRMATION_CONFIRMED,
    kinds.CONFIRMATION_DENIED,
    kinds.CONFIRMATION_EXPIRED,
)
# The member of a decision whose opening holds the texts that a caller chose.
DETAILS: Final = "details"
# Error and reason of a refusal → why, after “because”. A test holds that every reason is here.
REFUSALS: Final[Mapping[tuple[str, str | None], Any]] = {
    ("invalid_token", "malformed"): gettext_lazy("its access token could not be read"),
    ("invalid_token", "unknown"): gettext_lazy("no such access token was issued for this service"),
    ("invalid_token", "expired"): gettext_lazy("its access token had expired"),
    ("invalid_token", "not_yet_valid"): gettext_lazy("its access token was not valid yet"),
    ("invalid_token", "revoked"): gettext_lazy("its access token had been revoked"),
    ("invalid_token", "grant_inactive"): gettext_lazy("its grant was not active"),
    ("invalid_token", "agent_inactive"): gettext_lazy("the agent was not active"),
    ("invalid_token", "human_inactive"): gettext_lazy("your account was not active"),
    ("invalid_token", "binding"): gettext_lazy("its access token belongs to another key"),
    ("invalid_dpop_proof", "malformed"): gettext_lazy("its proof was missing or unreadable"),
    ("invalid_dpop_proof", "signature"): gettext_lazy("its proof was not signed with its key"),
    ("invalid_dpop_proof", "method"): gettext_lazy("its proof was made for another request"),
    ("invalid_dpop_proof", "url"): gettext_lazy("its proof or the call was for another address"),
    ("invalid_dpop_proof", "iat"): gettext_lazy("its proof was too old or from the future"),
    ("invalid_dpop_proof", "ath"): gettext_lazy("its proof was made for another access token"),
    ("invalid_dpop_proof", "replayed"): gettext_lazy("its proof had been used before"),
    ("use_dpop_nonce", None): gettext_lazy("its proof lacked the current nonce"),
    ("insufficient_scope", "no_capability"): gettext_lazy("it has no permission for this"),
    ("insufficient_scope", "constraint"): gettext_lazy("this exceeds a limit of its permission"),
    ("outside_time_window", None): gettext_lazy("this was outside the hours that you allowed"),
    ("step_up_required", "human_offline"): gettext_lazy("your “I'm here” switch was off"),
    ("step_up_required", "confirm_above"): gettext_lazy("your confirmation was missing"),
    ("step_up_required", "confirmation_denied"): gettext_lazy("you had denied it"),
    ("envelope_exceeded", "rate"): gettext_lazy("it made too many requests in a short time"),
    ("envelope_exceeded", "budget"): gettext_lazy("this would have exceeded its budget"),
    ("envelope_exceeded", "max_uses"): gettext_lazy("all uses that you allowed had been used"),
    ("idempotency_mismatch", None): gettext_lazy(
        "it reused the idempotency key of another operation"
    ),
    ("temporarily_unavailable", "withheld"): gettext_lazy("the answer came too late"),
}


def describe_act(
    event: Event,
    service: str | None,
    *,
    words: Catalogue = NO_CATALOGUE,
    is_withheld: bool = False,
) -> str | None:
    """The act of a decision's event at the service of this name, and its outcome, as a phrase.

    Resource, names and payee come from the event's opening. If that was erased or does not fit its
    commitment, the phrase goes without them. None if not even the kind of act is known.
    `is_withheld`: a later event says that the service was never sent this permit. `words` are the
    service's current ones: an event does not record which it had.
    """
    data = event.data if isinstance(event.data, dict) else {}
    if service is None or "action" not in data:
        return None
    phrases = _phrases(event, data["action"], service)
    if phrases is None:
        return None
    act, acted = phrases
    match event.kind:
        case kinds.DECISION_ALLOWED:
            text = (
                _("was allowed to %(act)s, but too late: the service was not told") % {"act": act}
                if is_withheld
                else acted
            )
        case kinds.DECISION_REPEATED:
            text = _("asked again to %(act)s, and got the same answer") % {"act": act}
        case kinds.DECISION_REHEARSED:
            text = _("dry run: would be allowed to %(act)s") % {"act": act}
        case _:
            text = _refused(data, event.reason, act)
    action = action_of(event) if words != NO_CATALOGUE else None
    named = in_brief(words, action) if action else ""
    return text + named + _times(data.get("count"))


def describe_confirmation(
    event: Event, action: object, service: str | None, *, words: Catalogue = NO_CATALOGUE
) -> str | None:
    """What was to be confirmed, and the outcome.

    None if the action or the service's name is gone.
    """
    try:
        asked = parse_action(action)
    except AgentAuthError:
        return None
    if service is None:
        return None
    forms = {
        kinds.CONFIRMATION_REQUESTED: _("asked for your confirmation to %(act)s"),
        kinds.CONFIRMATION_CONFIRMED: _("confirmed: %(act)s"),
        kinds.CONFIRMATION_DENIED: _("denied: %(act)s"),
        kinds.CONFIRMATION_EXPIRED: _("was not confirmed in time: %(act)s"),
    }
    act = sentences.act(_headline(asked), service, words) + in_brief(words, asked)
    return forms[event.kind] % {"act": act}


def opened_details(event: Event) -> dict[str, Any]:
    """The texts of a decision; empty if they were erased or do not fit their commitment."""
    for opening in event.openings.all():
        if opening.member == DETAILS and is_committed(event, opening):
            return opening.value if isinstance(opening.value, dict) else {}
    return {}


def argument_lines(details: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and value of each recorded argument, as a reader sees them."""
    arguments = details.get("arguments")
    pairs = sorted(arguments.items()) if isinstance(arguments, dict) else []
    return [sentences.argument(name, value) for name, value in pairs if isinstance(value, Scalar)]


def action_of(event: Event) -> Action | None:
    """The action of a decision; None if its texts are missing.

    Of arguments that are long together, the longest are missing (docs/adr/0046).
    """
    shown = event.data.get("action")
    details = opened_details(event)
    if not isinstance(shown, dict) or "resource" not in details:
        return None
    members = ("resource", "namespace", "name", "arguments")
    texts = {name: details[name] for name in members if name in details}
    try:
        return parse_action(shown | texts)
    except AgentAuthError:
        return None


def _phrases(event: Event, shown: object, service: str) -> tuple[str, str] | None:
    """The act as an infinitive and in the past tense: “pay …”, “paid …”."""
    if shown is None:
        call = {"at": quoted(service)}
        return _("use its access token at %(at)s") % call, _(
            "used its access token at %(at)s"
        ) % call
    if not isinstance(shown, dict) or not isinstance(kind := shown.get("type"), str):
        return None
    if (action := action_of(event)) is not None:
        action = _headline(action)
        return sentences.act(action, service), sentences.acted(action, service)
    try:
        amount = Money.parse(shown["amount"]) if "amount" in shown else None
    except AgentAuthError:
        amount = None
    return (
        sentences.act_in_brief(kind, amount, service),
        sentences.acted_in_brief(kind, amount, service),
    )


def _headline(action: Action) -> Action:
    """The action for a line of a list: without arguments except the payee, which is cut if long.

    The event's page has all of them.
    """
    payee = action.payee
    if payee is not None and len(payee) > MAX_NAME:
        payee = payee[: MAX_NAME - 1] + "…"
    return replace(action, arguments={} if payee is None else {PAYEE: payee})


def _refused(data: Mapping[str, Any], reason: str | None, act: str) -> str:
    error = str(data.get("error", ""))
    # An event of a refusal without a finer reason repeats the error as its reason.
    why = REFUSALS.get((error, None if reason == error else reason))
    parts = {"act": act, "why": why}
    if data.get("dry_run"):
        if why is None:
            return _("dry run: would not be allowed to %(act)s") % parts
        return _("dry run: would not be allowed to %(act)s, because %(why)s") % parts
    if why is None:
        return _("was not allowed to %(act)s") % parts
    return _("was not allowed to %(act)s, because %(why)s") % parts


def _times(count: object) -> str:
    # One event may stand for several sampled refusals (`EarlyRefusal.stands_for`).
    if not isinstance(count, int) or isinstance(count, bool) or count <= 1:
        return ""
    words = ngettext(" (%(n)s time)", " (%(n)s times)", count)
    return words % {"n": sentences.whole(count)}
