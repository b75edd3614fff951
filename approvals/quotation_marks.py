"""Quotation marks around what others wrote, in the style of the reader's language."""

import re

from django.utils.translation import gettext as _

from agentauth.protocol.untrusted_text import legible

# A quotation in English or German. No quoted text can contain any of these marks: `legible` escapes
# them.
QUOTED = re.compile("(“[^”]*”|„[^“]*“)")


def quoted(text: str) -> str:
    """A name or value in quotation marks, so that it reads as a quotation whatever it says."""
    return _("“%(text)s”") % {"text": legible(text, in_quotes=True)}
