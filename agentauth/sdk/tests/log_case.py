"""Parts of the cases in the table of logs: a valid folder, and ways to break it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentauth.sdk.tests.log_folders import (
    LOG_KEY,
    Folder,
    Key,
    MadeLog,
    digest,
    note,
    pack,
)

Spoil = Callable[[Folder], object]
LOG = MadeLog()
REWRITTEN = MadeLog(seed="rewritten")
SIZE, ENDS, CHECKPOINTS = 12, (5, 8, 12), (3, 5, 10, 12, 14)
LAST = f"segments/{8:020}.json"
OTHER = Key("other", "other.example/v1/audit")


@dataclass(frozen=True)
class Case:
    """`kept` stands for the file of the checkpoint that was kept.

    `leaf` is null if nothing is wrong.
    """

    name: str
    kind: str
    spoil: Spoil
    place: str = ""
    leaf: int | None = None

    def make(self, path: Path) -> Folder:
        folder = Folder(path, LOG)
        if self.kind == "export":
            folder.export(SIZE)
        elif self.kind == "archive":
            folder.archive(ENDS, CHECKPOINTS)
        self.spoil(folder)
        return folder


def both(*spoils: Spoil) -> Spoil:
    """Apply all edits in order."""
    return lambda f: [spoil(f) for spoil in spoils]


def swapped(lines: list[bytes]) -> list[bytes]:
    lines[4], lines[5] = lines[5], lines[4]
    return lines


def line_edit(index: int, old: bytes, new: bytes) -> Spoil:
    def change(lines: list[bytes]) -> list[bytes]:
        assert old in lines[index]
        lines[index] = lines[index].replace(old, new, 1)
        return lines

    return lambda f: f.edit_lines(change)


def lines(change: Callable[[list[bytes]], list[bytes]]) -> Spoil:
    return lambda f: f.edit_lines(change)


def packed(change: Callable[[bytes], bytes]) -> Spoil:
    return lambda f: f.edit("lines.gz", change)


def head(text: str | bytes) -> Spoil:
    return lambda f: f.write("checkpoint", text)


def text_edit(old: str, new: str) -> Spoil:
    """A checkpoint with another text, signed by the log's own key."""
    assert old in LOG.text(SIZE)
    return head(note(LOG.text(SIZE).replace(old, new, 1), LOG_KEY))


def trailing_bits(text: str) -> str:
    """The same bytes in another base64: set one of the bits that the last letter does not need."""
    stem, letter, padding = text.rstrip("="), text.rstrip("=")[-1], text[len(text.rstrip("=")) :]
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789" + (
        "-_" if "-" in text or "_" in text else "+/"
    )
    return stem[:-1] + alphabet[alphabet.index(letter) + 1] + padding


def loose_salt(found: list[bytes]) -> list[bytes]:
    index, salt, event = found[3].split(b" ", 2)
    found[3] = b" ".join([index, trailing_bits(salt.decode()).encode(), event])
    return found


def manifest_text(change: Callable[[str], str]) -> Spoil:
    return lambda f: f.edit(LAST, lambda raw: change(raw.decode()).encode())


def last(**changes: Any) -> Spoil:
    return lambda f: f.edit_manifest(8, **changes)


def part_edit(part: str, **changes: Any) -> Spoil:
    return lambda f: f.edit_manifest(8, **{part: f.manifest(8)[part] | changes})


def rewritten_segment(folder: Folder) -> None:
    """An attacker without the log's key writes a segment of other events, and everything unsigned
    with it.
    """
    folder.segment(5, 8, lines=REWRITTEN.lines[5:8])
    folder.segment(8, 12)


def rewritten_log(folder: Folder) -> None:
    """An attacker with the log's key writes a new history and signs it."""
    for stale in folder.path.rglob("*"):
        if stale.is_file():
            stale.unlink()
    folder.log = REWRITTEN
    folder.archive(ENDS, CHECKPOINTS)


def rewritten_but_kept(folder: Folder) -> None:
    rewritten_log(folder)
    folder.keep(LOG.note(7))


def split_view(folder: Folder) -> None:
    folder.write(f"checkpoints/{10:020}", REWRITTEN.note(10))


def shortened(folder: Folder) -> None:
    folder.remove(LAST)
    folder.keep(LOG.note(10))


def object_of(first: int, part: str, act: Callable[[Folder, str], object]) -> Spoil:
    return lambda f: act(f, str(f.manifest(first)[part]["key"]))


def moved(folder: Folder, where: str) -> None:
    """The object is in another place, which the manifest names."""
    part = folder.manifest(8)["lines"]
    data = folder.read(part["key"])
    folder.edit_manifest(8, lines=part | {"key": where})
    if not where.startswith("/"):
        folder.write(where, data)


def overlapping(folder: Folder) -> None:
    folder.segment(4, 8)


def junk_member(folder: Folder) -> None:
    folder.write("lines.gz", pack(b"") + folder.read("lines.gz"))


def kept(text: str) -> Spoil:
    return lambda f: f.keep(text)


def at(first: int, part: str) -> str:
    """The key of an object in the unbroken archive, which depends only on the log."""
    data = {"lines": pack(b"".join(LOG.lines[8:12])), "parquet": b"PAR1 8 12 PAR1"}[part]
    assert first == 8
    return f"objects/{digest(data)}.{'lines.gz' if part == 'lines' else part}"
