"""What changed since a page was shown, or since a statement was signed, in words."""

from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop

from approvals import sentences
from approvals.quotation_marks import quoted

# A state that no page shows by this word.
_PENDING = gettext_noop("pending")


def change_sentence(name: str, old: object, new: object) -> str:
    """A sentence about one member of what a decision rests on, with its old and new value."""
    if name == "agent_key":
        old, new = sentences.fingerprint(str(old)), sentences.fingerprint(str(new))
    if name in {"agent_name", "service_name", "name"}:
        old, new = quoted(str(old)), quoted(str(new))
    if name.endswith("status"):
        old, new = _(str(old)), _(str(new))
    plain = {
        "agent_name": _("The agent was called %(old)s and is now called %(new)s."),
        "service_name": _("The service was called %(old)s and is now called %(new)s."),
        "audience": _("The service moved from %(old)s to %(new)s."),
        "status": _("The request was %(old)s and is now %(new)s."),
        "agent_status": _("The agent was %(old)s and is now %(new)s."),
        "service_status": _("The service was %(old)s and is now %(new)s."),
        "agent_key": _("The agent’s key was %(old)s and is now %(new)s."),
        "manifest": _("The agent changed its description."),
        "allowed": _("The service changed what it allows."),
        "catalogue": _("The service’s own words have changed."),
        "replaces": _("Another version of the service’s words is approved now."),
        "logo": _("Another logo was uploaded."),
        "replaced_logo": _("The logo that people see now is another one."),
        "warnings": _("The warnings have changed."),
        "capabilities": _("The agent now asks for other permissions."),
        "envelope": _("The limits have changed."),
        "version": _("The grant has a newer version."),
        "action": _("The agent now asks to do something else."),
        "claim_number": _("The claim link was renewed."),
        "name": _("It was called %(old)s and is now called %(new)s."),
        "suspension": _("This was suspended again."),
        "party": _("This page now lifts a different party’s suspension."),
        "vkeys": _("The keys of the log have changed."),
        "language": _("You chose another language since this page was shown."),
        "text": _("The text to sign is not the one that was shown."),
        "routing": _("Other people decide on this now."),
        "reader": _("This page was drawn for another person."),
        "likenesses": _("The warnings about the agent’s name have changed."),
    }
    if name.startswith("grant."):
        return _("One of these grants changed.")
    sentence = plain.get(name, _("Something else changed."))
    return sentence % {"old": old, "new": new} if "%(old)s" in sentence else sentence
