"""The text that an administrator signs to approve a version of a catalogue: all its words."""

from django.utils.translation import gettext as _

from agentauth.protocol.catalogue import ActionWords
from approvals.consent_texts import service_line
from approvals.quotation_marks import quoted
from approvals.sentences import risk_word
from registry.services.catalogues import Published


def catalogue_text(
    *, service_provider: str, audience: str, new: Published, replaces: int | None
) -> str:
    """One line for each action and each resource, after the service and the version."""
    parts = {"version": new.ref.version, "before": replaces, "digest": new.ref.sha256}
    lines = [
        service_line(service_provider, audience),
        _("As an administrator, I approve version %(version)s of this service’s own words.")
        % parts,
        _("It replaces version %(before)s.") % parts
        if replaces
        else _("The service had no words of its own before."),
        _(
            "People read these words after the registry’s own sentence, marked as the service’s. "
            "They change no permission and no limit."
        ),
        _("SHA-256 of this version: %(digest)s") % parts,
    ]
    lines += [_action_line(key, words) for key, words in sorted(new.catalogue.actions.items())]
    lines += [
        _("%(name)s is called %(label)s.") % {"name": name, "label": quoted(label)}
        for name, label in sorted(new.catalogue.resources.items())
    ]
    return "\n".join(lines)


def _action_line(key: str, words: ActionWords) -> str:
    parts = {
        "key": key,
        "label": quoted(words.label),
        "sentence": quoted(words.sentence),
        "icon": words.icon,
        "risk": risk_word(words.risk) if words.risk else "",
        "arguments": ", ".join(
            f"{name} {quoted(each.label)} ({each.format}"
            + (f" {quoted(each.unit)})" if each.unit else ")")
            for name, each in sorted(words.arguments.items())
        ),
    }
    line = _("%(key)s is called %(label)s: %(sentence)s") % parts
    line += (_(" Icon: %(icon)s.") % parts) if words.icon else ""
    line += (_(" Risk: at least %(risk)s.") % parts) if words.risk else ""
    return line + ((_(" Arguments: %(arguments)s.") % parts) if words.arguments else "")
