"""Pages that ask before an irreversible act: what ends, the name to type, and the passkey."""

import uuid
from collections.abc import Sequence

from django.contrib import messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django.views.decorators.http import require_POST, require_safe

from approvals.services import destructive_actions
from approvals.services.destructive_actions import Party, Preview
from approvals.views.paging import id_or_none_of_ours
from approvals.views.reauthentication import check_verification
from approvals.views.request_helpers import chosen_ids, chosen_of, human_of, require_sign_in
from registry.admin import MOST_AT_ONCE
from registry.authentication import actor_of
from registry.models import Grant

# The control room's list of each kind.
LISTS = {
    "agent": "registry_agent",
    "grant": "registry_grant",
    "service_provider": "registry_serviceprovider",
    "human": "registry_human",
    "invitation": "approvals_setupcode",
    "key": "kms_key",
    "key_certificate": "kms_keycertificate",
}


@require_safe
@require_sign_in
def page(request: HttpRequest, /, kind: str, party: Party, **ids: uuid.UUID) -> HttpResponse:
    chosen = list(ids.values()) or chosen_ids(request)
    found = destructive_actions.preview(
        kind, chosen, human=human_of(request), party=party, now=timezone.now()
    )
    context = {
        "found": found,
        "kind": kind,
        "title": _title(found),
        "chosen": chosen,
        "of": chosen_of(request),
        "back": _back(kind, party, chosen),
    }
    return render(request, "ending.html", context)


@require_POST
@require_sign_in
def end(
    request: HttpRequest, /, kind: str, party: Party, shown: str, **ids: uuid.UUID
) -> HttpResponse:
    human, now = human_of(request), timezone.now()
    posted = request.POST.getlist("id")[:MOST_AT_ONCE]
    chosen = list(ids.values()) or list(dict.fromkeys(map(id_or_none_of_ours, posted)))
    found = destructive_actions.preview(kind, chosen, human=human, party=party, now=now)
    # Before the passkey, because what was shown decides whether one is asked for.
    destructive_actions.check_shown(found, shown)
    if found.typed:
        destructive_actions.check_typed(found, request.POST.get("typed", ""))
        # The signature is bound to this path, which names what was shown.
        check_verification(request)
    done = destructive_actions.end_for_good(
        kind, chosen, shown=shown, human=human, party=party, actor=actor_of(request), now=now
    )
    word = (
        _("Revoked") if party == "owner" else _("Done for %(count)d.") % {"count": len(done.ends)}
    )
    messages.success(request, word)
    return HttpResponseRedirect(_back(kind, party, chosen))


def _title(found: Preview) -> str:
    n, what = len(found.ends), found.ends[0].title if len(found.ends) == 1 else ""
    if not n:
        return _("Nothing can be ended here")
    if found.kind == "agent":
        several = ngettext("Revoke agent %(what)s for good?", "Revoke %(n)d agents for good?", n)
    elif found.kind == "grant":
        several = ngettext(
            "Revoke the grant of agent %(what)s for good?", "Revoke %(n)d grants for good?", n
        )
    elif found.kind == "service_provider":
        several = ngettext(
            "Revoke service %(what)s for good?", "Revoke %(n)d services for good?", n
        )
    elif found.kind == "human":
        several = ngettext(
            "Delete the account of %(what)s for good?", "Delete %(n)d accounts for good?", n
        )
    elif found.kind == "invitation":
        several = ngettext(
            "Forget the invitation of %(what)s for good?", "Forget %(n)d invitations for good?", n
        )
    elif found.kind == "key":
        several = ngettext("Disable the %(what)s for good?", "Disable %(n)d keys for good?", n)
    else:
        several = ngettext(
            "Revoke the certificate %(what)s for good?", "Revoke %(n)d certificates for good?", n
        )
    return several % {"what": what, "n": n}


def _back(kind: str, party: Party, chosen: Sequence[uuid.UUID]) -> str:
    """The page that shows the rows: the owner's, or the control room's list."""
    if party == "administrator":
        return reverse(f"admin:{LISTS[kind]}_changelist")
    agent_id = (
        chosen[0]
        if kind == "agent"
        else Grant.objects.values_list("agent_id", flat=True).get(pk=chosen[0])
    )
    return f"/agents/{agent_id}/"
