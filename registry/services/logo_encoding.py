"""A picture that an administrator uploads, as the one PNG that the registry stores (ADR 52)."""

import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from threading import Timer
from typing import Final

from django.utils.translation import gettext_noop

from agentauth.protocol.errors import InvalidRequestError, InvalidStateError
from registry.services import logo_encoder_process

# A logo at the largest size that we show, saved without care, has far fewer bytes.
MAX_UPLOAD: Final = 256 * 1024
# The child stops itself after 5 s of CPU time. More than that is a host without a free core.
_SECONDS: Final = 15
# More than its pixels take without compression.
_MAX_OUTPUT: Final = 80 * 1024
# How a PNG of this size begins: the signature, then the header's length, type, width and height.
_SQUARE: Final = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR" + 2 * logo_encoder_process.SIDE.to_bytes(
    4, "big"
)
_ROOT: Final = Path(__file__).resolve().parents[2]
# Whole sentences, since people read them in their language.
REFUSALS: Final = {
    "format": gettext_noop(
        "The logo must be a PNG, JPEG or WebP picture. Save it as one of these."
    ),
    "size": gettext_noop("The logo must be 32 to 4,096 pixels wide and high. Scale it."),
    "animated": gettext_noop(
        "The logo must be a single picture, not an animation. Save one frame of it."
    ),
    "broken": gettext_noop(
        "The logo cannot be read. Save it again as an ordinary PNG, then upload that."
    ),
    "bytes": gettext_noop("The logo must be at most 256 kB. Scale it to 512 pixels."),
}


def encode_logo(data: bytes) -> bytes:
    """Re-encode an uploaded picture in a child process. Call it outside of a transaction.

    Raises InvalidRequestError if the picture is not taken, InvalidStateError if this host lacks
    Pillow.
    """
    if not data:
        raise InvalidRequestError("Choose a picture.")
    if len(data) > MAX_UPLOAD:
        raise InvalidRequestError(REFUSALS["bytes"])
    status, made = _run_child(data)
    if status == logo_encoder_process.MISSING:
        lock = _ROOT / "requirements-production.txt"
        raise InvalidStateError(
            "Logos need the package Pillow, which is not installed. Install what production needs: "
            f"{sys.executable} -m pip install --require-hashes -r {lock}"
        )
    if status != 0:
        # Also if a limit ended the child, or the decoder crashed.
        reason = made[:16].decode("ascii", "replace")
        raise InvalidRequestError(REFUSALS.get(reason, REFUSALS["broken"]))
    if not made.startswith(_SQUARE):
        # Only a decoder that was taken over writes anything else.
        raise InvalidRequestError(REFUSALS["broken"])
    return made


def _run_child(data: bytes) -> tuple[int, bytes]:
    """The child's exit status and what it wrote. Raises InvalidRequestError if that is too much.

    A decoder that was taken over could read nothing, write without end or never end, so we read no
    more than a logo takes, and kill it after `_SECONDS`.
    """
    # -I: neither the environment nor the working directory decides what the child imports.
    command = [sys.executable, "-I", logo_encoder_process.__file__]
    pipe = subprocess.PIPE
    with subprocess.Popen(  # noqa: S603 — our own file
        command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, env={}
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        clock = Timer(_SECONDS, child.kill)
        clock.start()
        try:
            with suppress(BrokenPipeError), child.stdin:
                child.stdin.write(data)
            made = child.stdout.read(_MAX_OUTPUT + 1)
            if len(made) > _MAX_OUTPUT:
                raise InvalidRequestError(REFUSALS["broken"])
            return child.wait(), made
        finally:
            child.kill()
            clock.cancel()
