"""An uploaded picture becomes one small PNG of its pixels, or is refused before it is decoded."""

import io
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from agentauth.protocol.errors import InvalidRequestError, InvalidStateError
from registry.services import logo_encoder_process, logo_encoding
from registry.services.logo_encoder_process import SIDE, RefusedError, encode
from registry.services.logo_encoding import _SQUARE, MAX_UPLOAD, encode_logo
from registry.tests.logos import picture

PAYLOAD = b"<script>alert(1)</script>PK\x03\x04"


def opened(data: bytes) -> Any:
    found = Image.open(io.BytesIO(data), formats=["PNG"])
    found.load()
    return found


def chunk(kind: bytes, data: bytes) -> bytes:
    crc = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + crc


def png(width: int, height: int, *rows: bytes) -> bytes:
    """A PNG that says it has this size, whatever its rows are."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"".join(rows)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body + chunk(b"IEND", b"")


def animated(form: str) -> bytes:
    out = io.BytesIO()
    frames = [Image.new("RGB", (64, 64), (shade, 0, 0)) for shade in (10, 200)]
    frames[0].save(out, format=form, save_all=True, append_images=frames[1:])
    return out.getvalue()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_each_format_becomes_one_square_png(form: str) -> None:
    found = opened(encode_logo(picture(form=form)))
    assert (found.format, found.mode, found.size) == ("PNG", "RGBA", (SIDE, SIDE))
    # Twice as wide as high: the whole picture is there, and the rest is transparent.
    assert found.getpixel((SIDE // 2, 4))[3] == 0
    middle = found.getpixel((SIDE // 2, SIDE // 2))
    assert all(abs(is_ - was) < 4 for is_, was in zip(middle, (20, 120, 60, 255), strict=True))


def test_exif_turns_the_picture_and_is_removed_like_all_metadata() -> None:
    whole = Image.new("RGB", (64, 64), (255, 0, 0))
    whole.paste((0, 0, 255), (0, 0, 64, 32))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    exif[0x010E] = "PLACE"
    out = io.BytesIO()
    whole.save(out, format="JPEG", exif=exif, comment=b"COMMENT", icc_profile=b"PROFILE" * 20)
    assert b"PLACE" in out.getvalue()
    made = encode(out.getvalue())
    found = opened(made)
    assert found.getpixel((64, 100))[2] > 200 > found.getpixel((64, 20))[2]
    assert not found.info
    kinds = [made[at + 4 : at + 8] for at in _chunks(made)]
    assert set(kinds) == {b"IHDR", b"IDAT", b"IEND"}


def _chunks(data: bytes) -> list[int]:
    found, at = [], 8
    while at < len(data):
        found.append(at)
        at += 12 + struct.unpack(">I", data[at : at + 4])[0]
    return found


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_a_polyglot_loses_what_is_not_picture(form: str) -> None:
    made = encode(picture(form=form) + PAYLOAD)
    assert not any(part in made for part in (b"script", b"PK\x03\x04"))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b'<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"/>', "format"),
        (b"<?xml version='1.0'?><svg/>", "format"),
        (picture(form="GIF"), "format"),
        (picture(form="BMP"), "format"),
        (picture(form="TIFF"), "format"),
        (picture(form="ICO"), "format"),
        (b"%PDF-1.7", "format"),
        (PAYLOAD + picture(), "format"),
        (animated("MPO"), "format"),
        (animated("PNG"), "animated"),
        (animated("WEBP"), "animated"),
        (picture((31, 200)), "size"),
        (picture((4097, 40)), "size"),
        (picture()[:-40], "broken"),
        (picture((64, 64), "JPEG")[:-200], "broken"),
        (png(64, 64, b"\0" * 100), "broken"),
    ],
)  # fmt: skip
def test_what_is_not_one_whole_picture_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(RefusedError, match=f"^{reason}$"):
        encode(data)


@pytest.mark.parametrize("size", [(4096, 40_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
def test_a_decompression_bomb_is_refused_by_its_header(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(RefusedError, match=r"^size$"):
        encode(png(*size, b"\0" * 1000))


def test_the_largest_picture_fits_into_the_limits_of_the_child() -> None:
    largest = logo_encoder_process.MAX_SIDE
    out = io.BytesIO()
    Image.new("RGBA", (largest, largest), (0, 0, 0, 0)).save(out, format="PNG")
    assert opened(encode_logo(out.getvalue())).size == (SIDE, SIDE)


def test_the_sentences_name_the_limits() -> None:
    low, high = logo_encoder_process.MIN_SIDE, logo_encoder_process.MAX_SIDE
    assert f"{low} to {high:,} pixels" in logo_encoding.REFUSALS["size"]
    assert f"{MAX_UPLOAD // 1024} kB" in logo_encoding.REFUSALS["bytes"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "Choose a picture."),
        (picture() + b"\0" * MAX_UPLOAD, "at most 256 kB"),
        (b"<svg/>", "PNG, JPEG or WebP"),
        (picture()[:-40], "cannot be read"),
    ],
)
def test_a_refused_picture_says_why(data: bytes, said: str) -> None:
    with pytest.raises(InvalidRequestError, match=said):
        encode_logo(data)


def test_the_child_has_limits_and_nothing_of_its_parents(monkeypatch: pytest.MonkeyPatch) -> None:
    """It inherits no environment, and cannot take more memory or time, or write a file."""
    monkeypatch.setenv("SECRET_KEY", "a secret")
    probe = (
        "import os, resource, runpy\n"
        f"try: runpy.run_path({logo_encoder_process.__file__!r}, run_name='__main__')\n"
        "except SystemExit: print()\n"
        "seconds = resource.getrlimit(resource.RLIMIT_CPU)[0]\n"
        "print(dict(os.environ).keys() - {'LC_CTYPE'}, seconds)\n"
        "try: bytearray(1 << 30)\nexcept MemoryError: print('memory')\n"
        "try: open('/dev/shm/logo-probe', 'wb', 0).write(b'x')\nexcept OSError: print('file')"
    )
    command = [sys.executable, "-I", "-c", probe]
    done = subprocess.run(command, env={}, input="", capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["format", "set() 5", "memory", "file"], done.stderr
    seen: dict[str, Any] = {}
    start = subprocess.Popen

    def noted(command: list[str], **how: Any) -> Any:
        seen.update(how, options=command[1:-1])
        return start(command, **how)

    monkeypatch.setattr(subprocess, "Popen", noted)
    encode_logo(picture())
    assert (seen["env"], seen["options"]) == ({}, ["-I"])


@pytest.mark.parametrize("writes", [b"", b"<svg/>", picture()], ids=["none", "svg", "any-png"])
def test_only_a_png_of_the_size_of_a_logo_is_taken_from_the_child(
    writes: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A decoder that was taken over may end as if all were well."""
    taken = tmp_path / "encoder.py"
    taken.write_text(f"import sys; sys.stdin.buffer.read(); sys.stdout.buffer.write({writes!r})")
    monkeypatch.setattr(logo_encoder_process, "__file__", str(taken))
    with pytest.raises(InvalidRequestError, match="cannot be read"):
        encode_logo(picture())


def test_a_child_that_a_limit_ends_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logo_encoder_process, "__file__", "/nonexistent")
    with pytest.raises(InvalidRequestError, match="cannot be read"):
        encode_logo(picture())


# What a decoder that was taken over may do instead of its work.
TAKEN = {
    "writes-without-end": "import sys, time\nsys.stdin.read()\n"
    "for _ in range(400): sys.stdout.write('x' * 65536)\ntime.sleep(60)",
    "writes-too-much": f"import sys\nsys.stdout.buffer.write({_SQUARE!r} + bytes(99999))",
    "closes-its-output": "import os, time\nos.close(1), time.sleep(60)",
    "does-not-read": "import time\ntime.sleep(60)",
}


@pytest.mark.parametrize("does", TAKEN.values(), ids=TAKEN)
def test_a_child_that_was_taken_over_is_ended(
    does: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whatever it does, we keep no more of it than a logo has, and do not wait for it."""
    taken = tmp_path / "encoder.py"
    taken.write_text(does)
    monkeypatch.setattr(logo_encoder_process, "__file__", str(taken))
    monkeypatch.setattr(logo_encoding, "_SECONDS", 1)
    started = time.monotonic()
    tracemalloc.start()
    with pytest.raises(InvalidRequestError, match="cannot be read"):
        # More than a pipe holds, so that writing to a child that does not read blocks.
        encode_logo(b"x" * MAX_UPLOAD)
    _now, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 4 * MAX_UPLOAD
    assert time.monotonic() - started < 30


def test_a_missing_package_is_named_with_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """The child of a host without Pillow, where importing it fails."""
    without = tmp_path / "encoder.py"
    without.write_text(
        "import runpy, sys; sys.modules['PIL'] = None\n"
        f"runpy.run_path({logo_encoder_process.__file__!r}, run_name='__main__')"
    )
    monkeypatch.setattr(logo_encoder_process, "__file__", str(without))
    with pytest.raises(InvalidStateError, match=r"Pillow.*requirements-production\.txt"):
        encode_logo(picture())
