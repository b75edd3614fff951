"""The sentence of a refusal in the reader's language. On the wire it is always English."""

import re

from django.utils.translation import gettext

from agentauth.protocol.errors import AgentAuthError

_FIELD = re.compile(r"([a-z_]+): (.+)", re.DOTALL)


def refusal_text(error: AgentAuthError) -> str:
    """The error's sentence in the reader's language; English if it is not translated.

    `name: must not …` is looked up without its field.
    """
    text = error.description
    if not text:
        # The empty text is the key of the message catalogue's own header.
        return ""
    if field := _FIELD.fullmatch(text):
        return f"{gettext(field[1])}: {gettext(field[2])}"
    return gettext(text)
