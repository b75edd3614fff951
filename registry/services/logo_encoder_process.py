"""Re-encode one picture: bytes on stdin, a PNG or one line of refusal on stdout. A process itself.

`logo_encoding` runs this file in a child process, because decoders of images are C code that reads
untrusted bytes. The child has no settings, no database and no open file of its parent, and limits
on memory, time and files. Only this module imports Pillow, and it imports nothing of ours.
"""

import io
import resource
import sys
import warnings
from typing import Any, Final

# Width and height of what we store, in pixels: the largest mark on a page is 52 px, on screens of
# two pixels each.
SIDE: Final = 128
MIN_SIDE: Final = 32
MAX_SIDE: Final = 4_096
FORMATS: Final = ("PNG", "JPEG", "WEBP")
# A picture of MAX_SIDE by MAX_SIDE takes 64 MiB in RGBA, and a copy or two while it is scaled.
_MEMORY_BYTES: Final = 768 * 1024 * 1024
_CPU_SECONDS: Final = 5
# Exit codes; the parent has a sentence for each refusal.
REFUSED: Final = 3
MISSING: Final = 4


class RefusedError(Exception):
    """This picture is not taken. The message is a key of `logo_encoding.REFUSALS`."""


def encode(data: bytes) -> bytes:
    """The picture as a square PNG of SIDE pixels, made from its pixels alone.

    Metadata, text, colour profiles and whatever follows the picture in `data` are lost. Raises
    RefusedError.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    # A second guard behind our own check below, for pictures inside of pictures.
    Image.MAX_IMAGE_PIXELS = MAX_SIDE * MAX_SIDE
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    bombs = (Image.DecompressionBombError, Image.DecompressionBombWarning)
    try:
        # Reads the header only. Without `formats`, any of fifty decoders would get the bytes.
        with Image.open(io.BytesIO(data), formats=FORMATS) as found:
            _check(found)
            # Decodes. A truncated picture raises.
            found.load()
            upright = ImageOps.exif_transpose(found).convert("RGBA")
    except UnidentifiedImageError:
        raise RefusedError("format") from None
    except bombs:
        raise RefusedError("size") from None
    except (OSError, SyntaxError, ValueError, MemoryError, EOFError):
        raise RefusedError("broken") from None
    fitted = ImageOps.contain(upright, (SIDE, SIDE), Image.Resampling.LANCZOS)
    square = Image.new("RGBA", (SIDE, SIDE), (0, 0, 0, 0))
    square.paste(fitted, ((SIDE - fitted.width) // 2, (SIDE - fitted.height) // 2))
    out = io.BytesIO()
    square.save(out, format="PNG", optimize=True)
    return out.getvalue()


def _check(found: Any) -> None:
    # JPEG files may be MPO, which has several pictures.
    if found.format not in FORMATS:
        raise RefusedError("format")
    width, height = found.size
    if max(width, height) > MAX_SIDE or min(width, height) < MIN_SIDE:
        raise RefusedError("size")
    if getattr(found, "n_frames", 1) != 1:
        raise RefusedError("animated")


def limit_process() -> None:
    """Bound what a decoder that runs wild can take. No file can grow, no core is written."""
    for kind, most in (
        (resource.RLIMIT_AS, _MEMORY_BYTES),
        (resource.RLIMIT_CPU, _CPU_SECONDS),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (most, most))


def main() -> int:
    """Read the picture, write the PNG or the reason. Returns the exit code."""
    limit_process()
    try:
        sys.stdout.buffer.write(encode(sys.stdin.buffer.read()))
    except ModuleNotFoundError:
        return MISSING
    except RefusedError as error:
        sys.stdout.write(str(error))
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main())
