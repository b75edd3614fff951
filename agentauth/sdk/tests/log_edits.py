"""Random edits of a valid folder: bytes, whole files, and lines with everything around them made to
fit.
"""

import random
from dataclasses import dataclass
from pathlib import Path

from agentauth.sdk.tests.log_folders import Folder

# The time, the compressor's flags and its system: parts of a gzip header that no reader uses.
GZIP_REMARKS = range(4, 10)


@dataclass(frozen=True)
class Edit:
    """The edit, for the failure message, and whether the result may be accepted."""

    told: str
    harmless: bool = False


def anything(folder: Folder, chance: random.Random) -> Edit:
    """One random edit."""
    return chance.choice(
        [bytes_of_a_file, bytes_of_a_file, lines_resealed, lines_resealed, whole_files]
    )(folder, chance)


def spoilt(data: bytes, chance: random.Random) -> bytes:
    """Other bytes: one changed, some left out, added, doubled or exchanged, or the end cut off."""
    at = chance.randrange(len(data))
    to = min(len(data), at + chance.choice([1, 1, 2, 8, 40]))
    return chance.choice(
        [
            data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :],
            data[:at] + data[to:],
            data[:at] + chance.randbytes(to - at) + data[at:],
            data[:at] + chance.choice([b"\n", b" ", b"0", b"=", b"\0"]) + data[at:],
            data[:to] + data[at:],
            data[to:] + data[:to],
            data[:at],
        ]
    )


def files(folder: Folder) -> list[Path]:
    return sorted(path for path in folder.path.rglob("*") if path.is_file())


def bytes_of_a_file(folder: Folder, chance: random.Random) -> Edit:
    path = chance.choice(files(folder))
    before = path.read_bytes()
    after = spoilt(before, chance)
    path.write_bytes(after)
    differing = [
        at for at, (one, other) in enumerate(zip(before, after, strict=False)) if one != other
    ]
    remark = (
        path.name == "lines.gz" and len(before) == len(after) and {*differing} <= {*GZIP_REMARKS}
    )
    return Edit(f"{path.name}: {before!r} to {after!r}", harmless=before == after or remark)


def lines_resealed(folder: Folder, chance: random.Random) -> Edit:
    """An edit by an attacker who can write everywhere and has every key but the log's."""
    size = 12
    lines = [bytes(line) for line in folder.log.lines[:size]]
    kind = chance.choice(["bytes", "swap", "double", "drop", "replace"])
    at, to = chance.randrange(size), chance.randrange(size)
    match kind:
        case "bytes":
            lines[at] = spoilt(lines[at], chance)
        case "swap":
            lines[at], lines[to] = lines[to], lines[at]
        case "double":
            lines.insert(at, lines[to])
        case "drop":
            del lines[at]
        case "replace":
            lines[at] = lines[to]
    harmless = b"".join(lines) == b"".join(folder.log.lines[:size])
    if (folder.path / "lines.gz").exists():
        folder.export(size, lines=lines)
    else:
        first = 0
        for end in (5, 8, size):
            last = len(lines) if end == size else end
            folder.segment(first, end, lines=lines[first:last])
            first = end
    return Edit(f"{kind} {at} {to}", harmless=harmless)


def whole_files(folder: Folder, chance: random.Random) -> Edit:
    one, other = chance.choice(files(folder)), chance.choice(files(folder))
    kind = chance.choice(["remove", "copy", "swap", "empty", "double"])
    told = f"{kind} {one.relative_to(folder.path)} {other.relative_to(folder.path)}"
    first, second = one.read_bytes(), other.read_bytes()
    harmless = first == second and kind in {"copy", "swap"}
    match kind:
        case "remove":
            one.unlink()
            # Nothing records that a checkpoint was there; the segments have their own.
            harmless = one.parent.name == "checkpoints"
        case "copy":
            one.write_bytes(second)
        case "swap":
            one.write_bytes(second)
            other.write_bytes(first)
        case "empty":
            one.write_bytes(b"")
        case "double":
            twin = one.with_name(f"{one.name}x")
            twin.write_bytes(first)
            # Files that no manifest names are not read.
            harmless = one.parent.name not in {"checkpoints", "segments"}
    return Edit(told, harmless=harmless)
