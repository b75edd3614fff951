"""A picture that an administrator uploads, as the one PNG that the registry stores (ADR 52)."""

import subprocess
import sys
from pathlib import Path
from typing import Final

from django.utils.translation import gettext_noop

from agentauth.protocol.errors import InvalidRequestError, InvalidStateError
from registry.services import logo_encoder

# A logo at the largest size that we show, saved without care, has far fewer bytes.
MAX_UPLOAD: Final = 256 * 1024
# The child stops itself after 5 s of CPU time. More than that is a host without a free core.
_SECONDS: Final = 15
# More than its pixels take without compression.
_MAX_OUTPUT: Final = 80 * 1024
# How a PNG of this size begins: the signature, then the header's length, type, width and height.
_SQUARE: Final = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR" + 2 * logo_encoder.SIDE.to_bytes(4, "big")
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
    # -I: neither the environment nor the working directory decides what the child imports.
    command = [sys.executable, "-I", logo_encoder.__file__]
    try:
        done = subprocess.run(  # noqa: S603 — our own file
            command, input=data, capture_output=True, env={}, check=False, timeout=_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise InvalidRequestError(REFUSALS["broken"]) from None
    if done.returncode == logo_encoder.MISSING:
        lock = _ROOT / "requirements-production.txt"
        raise InvalidStateError(
            "Logos need the package Pillow, which is not installed. Install what production needs: "
            f"{sys.executable} -m pip install --require-hashes -r {lock}"
        )
    if done.returncode != 0:
        # Also if a limit ended the child, or the decoder crashed.
        reason = done.stdout[:16].decode("ascii", "replace")
        raise InvalidRequestError(REFUSALS.get(reason, REFUSALS["broken"]))
    if len(done.stdout) > _MAX_OUTPUT or not done.stdout.startswith(_SQUARE):
        # Only a decoder that was taken over writes anything else.
        raise InvalidRequestError(REFUSALS["broken"])
    return done.stdout
