"""Template filters: names and untrusted text, times with their zone, comparable fingerprints."""

import re
from datetime import date, datetime, timedelta
from typing import Any

from django import template
from django.utils import formats, timezone
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.timesince import timesince, timeuntil
from django.utils.translation import gettext as _
from django.utils.translation import npgettext_lazy, pgettext

from agentauth.protocol.untrusted_text import legible
from approvals import sentences
from approvals.identicons import identity_mark, logo_or_mark
from approvals.quotation_marks import QUOTED
from approvals.quotation_marks import quoted as in_quotes
from registry.models import ServiceProvider

register = template.Library()
register.filter("fingerprint", sentences.fingerprint)
register.filter("quoted", in_quotes)
register.filter("money", sentences.money)
register.filter("identity", identity_mark)
MOMENT = timedelta(minutes=1)
# From here on, a rate needs no digit after the point.
_WHOLE_FROM = 10
# Of our own, because Django's words do not fit after “in” and “ago” in every language.
_SPANS: dict[str, Any] = {
    "year": npgettext_lazy("span", "%(num)d year", "%(num)d years", "num"),
    "month": npgettext_lazy("span", "%(num)d month", "%(num)d months", "num"),
    "week": npgettext_lazy("span", "%(num)d week", "%(num)d weeks", "num"),
    "day": npgettext_lazy("span", "%(num)d day", "%(num)d days", "num"),
    "hour": npgettext_lazy("span", "%(num)d hour", "%(num)d hours", "num"),
    "minute": npgettext_lazy("span", "%(num)d minute", "%(num)d minutes", "num"),
}
_ESCAPE = re.compile(r"(\\\\)|\\(?:u\{[0-9a-f]+\}|x[0-9a-f]{2}|[nrt])")


@register.filter
def named(name: str) -> SafeString:
    """A name for a heading: in quotation marks and marked up as a name."""
    return set_apart(in_quotes(name))


@register.filter
def set_apart(sentence: str) -> SafeString:
    """A sentence of ours with every quoted name or value marked up, apart from our own words."""
    parts = enumerate(QUOTED.split(sentence))
    forms = ("{}", '<span class="name">{}</span>')
    return format_html_join(
        "", "{}", ((format_html(forms[index % 2], words),) for index, words in parts)
    )


@register.simple_tag(takes_context=True)
def service_mark(context: Any, provider: ServiceProvider) -> SafeString:
    """The picture before a service's name. One query on a page, however many services it has."""
    return logo_or_mark(provider, context.get("logos") or {})


@register.simple_tag(takes_context=True)
def whose_logo(context: Any, provider: ServiceProvider) -> str:
    """Whose picture `service_mark` drew, if it is the service's own; otherwise empty."""
    logos = context.get("logos") or {}
    return _("Logo: the service’s own") if provider.pk in logos else ""


@register.filter
def spoken(words: str) -> SafeString:
    """Untrusted text on one line; characters that would not show become marked escapes."""
    text = legible(" ".join(words.split()))
    parts, at = [], 0
    for found in _ESCAPE.finditer(text):
        if found[1] is None:
            parts += [
                ("{}", text[at : found.start()]),
                ('<span class="escape">{}</span>', found[0]),
            ]
            at = found.end()
    parts.append(("{}", text[at:]))
    return format_html_join("", "{}", ((format_html(form, words),) for form, words in parts))


@register.filter
def when(at: datetime | None) -> SafeString | str:
    """A relative time, with the exact time and its zone on hover."""
    if at is None:
        return _("never")
    now = timezone.now()
    if abs(at - now) < MOMENT:
        said = _("just now") if at <= now else _("in a moment")
    elif at > now:
        said = _("in %(time)s") % {"time": timeuntil(at, now, time_strings=_SPANS, depth=1)}
    else:
        said = _("%(time)s ago") % {"time": timesince(at, now, time_strings=_SPANS, depth=1)}
    return format_html('<time datetime="{}" title="{}">{}</time>', at.isoformat(), exact(at), said)


@register.filter
def grouped(number: int) -> str:
    """A whole number as the reader groups its digits."""
    return formats.number_format(number, force_grouping=True)


@register.filter
def rate(number: float) -> str:
    """Events per minute: one digit after the point below ten, none above."""
    return formats.number_format(number, 1 if 0 < number < _WHOLE_FROM else 0, force_grouping=True)


@register.filter
def exact(at: datetime) -> str:
    """A date and time in the reader's zone, which it names."""
    return sentences.moment(at, str(timezone.get_current_timezone()))


@register.filter
def month_day(day: date) -> str:
    """A day of this year, short: 5 Nov."""
    return formats.date_format(day, pgettext("date format", "j M"))
