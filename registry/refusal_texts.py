"""The sentence of a refusal in the reader's language. On the wire it is always English."""

import re

from django.utils.translation import gettext

from agentauth.protocol.errors import AgentAuthError

_FIELD = re.compile(r"([a-z_]+): (.+)", re.DOTALL)


def refusal_text(error: AgentAuthError) -> str:
    """The error's sentence as the catalogue has it; English if it has none.

    `name: must not …` is looked up without its field.
    """
    text = error.description
    if not text:
        # The catalogue's own header stands under the empty text.
        return ""
    if field := _FIELD.fullmatch(text):
        return f"{gettext(field[1])}: {gettext(field[2])}"
    return gettext(text)
