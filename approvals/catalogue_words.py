"""A service's words from its catalogue, each marked as the service's; values stay the registry's.

The registry's own verb, resource and amount always come first (`sentences.py`).
"""

from typing import Final

from django.utils import formats
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from agentauth.protocol.argument_constraint import Scalar
from agentauth.protocol.capability import Action, Capability
from agentauth.protocol.catalogue import ArgumentWords, Catalogue
from approvals.quotation_marks import quoted

_BYTES: Final = (("GB", 1_073_741_824), ("MB", 1_048_576), ("kB", 1_024))
_DAY: Final = 86_400
_HOUR: Final = 3_600
_MINUTE: Final = 60


def service_sentence(words: Catalogue, act: Capability | Action, amount: str) -> str:
    """The service's sentence about the act; empty if it has none."""
    # A quotation shows other spaces than this one as escapes, and German amounts have one.
    said = words.sentence_for(act, amount.replace("\N{NO-BREAK SPACE}", " "))
    return _("In the service’s words: %(words)s") % {"words": quoted(said)} if said else ""


def in_brief(words: Catalogue, act: Capability | Action) -> str:
    """The service's labels for the act and its resource, for the end of a line; else empty."""
    found = words.words_for(act)
    labels = [found.label] if found else []
    if act.resource in words.resources:
        labels.append(words.resources[act.resource])
    named = ", ".join(map(quoted, labels))
    return _(" (in the service’s words: %(words)s)") % {"words": named} if named else ""


def argument_words(words: Catalogue, act: Capability | Action, name: str) -> ArgumentWords | None:
    """What the service says about one argument of the act."""
    found = words.words_for(act)
    return found.arguments.get(name) if found else None


def argument_name(name: str, words: ArgumentWords | None) -> str:
    """An argument by its own name, then by the service's."""
    if words is None:
        return name
    parts = {"name": name, "label": quoted(words.label)}
    return _("%(name)s (in the service’s words: %(label)s)") % parts


def measured(value: Scalar, words: ArgumentWords | None) -> str | None:
    """The value in the unit that the service names, with the exact value; None without a unit."""
    if words is None or isinstance(value, bool) or not isinstance(value, int):
        return None
    match words.format:
        case "bytes" if value >= 0:
            return _size(value)
        case "percent":
            return _("%(n)s%%") % {"n": _grouped(value)}
        case "duration" if value >= 0:
            return _duration(value)
        case "number" if words.unit:
            # The service chose this word: quote it, so that it cannot pass for one of ours.
            return f"{_grouped(value)} {quoted(words.unit)}"
    return None


def _grouped(number: int | str) -> str:
    return formats.number_format(number, use_l10n=True, force_grouping=True)


def _size(value: int) -> str:
    exact = ngettext("%(n)s byte", "%(n)s bytes", value) % {"n": _grouped(value)}
    for unit, size in _BYTES:
        if value >= size:
            number = _grouped(f"{value / size:.2f}".rstrip("0").rstrip("."))
            parts = {"n": number, "unit": unit, "exact": exact}
            if value * 100 % size:
                return _("about %(n)s %(unit)s (%(exact)s)") % parts
            return _("%(n)s %(unit)s (%(exact)s)") % parts
    return exact


def _duration(value: int) -> str:
    exact = ngettext("%(n)s second", "%(n)s seconds", value) % {"n": _grouped(value)}
    if value < _MINUTE:
        return exact
    days, hours = value // _DAY, value % _DAY // _HOUR
    minutes, seconds = value % _HOUR // _MINUTE, value % _MINUTE
    parts = [
        ngettext("%(n)s day", "%(n)s days", days) % {"n": _grouped(days)} if days else "",
        ngettext("%(n)s hour", "%(n)s hours", hours) % {"n": hours} if hours else "",
        ngettext("%(n)s minute", "%(n)s minutes", minutes) % {"n": minutes} if minutes else "",
        ngettext("%(n)s second", "%(n)s seconds", seconds) % {"n": seconds} if seconds else "",
    ]
    return f"{' '.join(filter(None, parts))} ({exact})"
