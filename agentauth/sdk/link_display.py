"""Show a person where to decide: the link and code as text, and the link as a QR code.

The QR code needs the extra `cli` (segno); without it, and where the output is not a terminal, the
text is all there is.
"""

import io
import sys
from typing import Final, TextIO

from agentauth.protocol.untrusted_text import printable

from .registry_answers import Confirmation, Grant
from .url_checks import is_loopback

# A longer link makes a code that does not fit into a terminal of 80 columns.
MAX_QR_CHARACTERS: Final = 300
_BORDER: Final = 2


def link_text(pending: Grant | Confirmation) -> str:
    """Where the person decides, in one or two lines. Unprintable characters are escaped."""
    lines = [f"Open {printable(pending.approval_url or 'the registry')} and decide."]
    code = pending.claim_code if isinstance(pending, Grant) else None
    if code:
        lines.append(f"The page asks for this code: {printable(code)}")
    return "\n".join(lines)


def qr_code(link: str) -> str | None:
    """The link as a QR code of half blocks; None without segno, or if it would be too large."""
    try:
        import segno  # optional, and only this function needs it
    except ImportError:
        return None
    if not link.isascii() or not link.isprintable() or len(link) > MAX_QR_CHARACTERS:
        return None
    drawn = io.StringIO()
    segno.make(link, error="l", micro=False).terminal(drawn, border=_BORDER, compact=True)
    return drawn.getvalue().rstrip("\n")


def show_link(pending: Grant | Confirmation, stream: TextIO | None = None) -> None:
    """Write where the person decides, on stderr unless told otherwise: fits `on_pending`.

    With a QR code if the stream is a terminal, unless the link leads to this machine, which a
    phone could not open. The claim code is never in the QR code.
    """
    out = sys.stderr if stream is None else stream
    text = link_text(pending)
    link = pending.approval_url
    if link and out.isatty() and not is_loopback(link):
        drawn = qr_code(link)
        encoding = getattr(out, "encoding", None) or "utf-8"
        if drawn is not None and _can_encode(drawn, encoding):
            text = f"{drawn}\n{text}"
    out.write(f"{text}\n")
    out.flush()


def _can_encode(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True
