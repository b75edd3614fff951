"""Check an audit log without the server that wrote it: `python verify_log.py --help`.

One file, the standard library and `cryptography`; fetches nothing and trusts only your keys. A
folder is an export (`checkpoint`, `lines.gz`) or an archive (`segments/`, `objects/`); either may
have `checkpoints/`. Verified: each line is in its place and byte for byte what the signed roots
commit to; no segment is missing, doubled or changed; the folder's checkpoints and each
`--old-checkpoint` have the roots of these lines, so nothing you once saw was changed or dropped.
Not verified: that an event is true or well-formed (lines are hashed, not parsed), Parquet objects
(only their digests) and `tile/`. Checkpoints after the last segment: signatures only, up to
`newest_checkpoint`. A break after a restore (`breaks/`) is a problem unless `--accept-break` names
it. From leaf `first_bad` on, nothing is verified. Formats: protocol.md section 9.
"""

import argparse
import base64
import json
import re
import sys
import zlib
from collections.abc import Iterator
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

LOG_KEY, WITNESS_KEY, HASH = 1, 4, 32
MAX_FILE = 1 << 18  # a manifest, note or proof
MAX_LINE = 1 << 20  # a line, without its line feed
CHUNK = 1 << 18
ENDLESS = 10**20  # above the number that any file is named by
NUMBER = "(0|[1-9][0-9]{0,14})"  # in its one form, and below 2^53: every reader sees the same
LOG_NAME = re.compile("20[0-9]{12}")
VKEY = re.compile(r"([^\s+]+)\+([0-9a-f]{8})\+([A-Za-z0-9+/]{44})")
TEXT = rf"(([^\0-\x1f]+)\n{NUMBER}\n([A-Za-z0-9+/]{{43}}=)\n(?:[^\0-\x1f]+\n)*)"
NOTE = re.compile(TEXT + r"\n((?:— [^\s+\0-\x1f]+ [A-Za-z0-9+/]+={0,2}\n){1,16})")
# 43 letters are 258 bits, so the last letter is one of those that end in two zero bits.
LINE = re.compile(rf"{NUMBER} ([A-Za-z0-9_-]{{42}}[AEIMQUYcgkosw048]) ".encode())


class ProblemError(Exception):
    """What is wrong, and where; `first_bad` if the fault may lie before the line being read."""

    def __init__(self, place: str, text: str, first_bad: int | None = None) -> None:
        super().__init__(f"{place}: {text}")
        self.first_bad = first_bad


class Checkpoint(NamedTuple):
    """A signed tree, and where its note was read."""

    place: str
    size: int
    root: bytes


class Part(NamedTuple):
    """One log of the archive: its folder, its name, and how much of it counts."""

    folder: str
    origin: str
    signed: int
    archived: int


def read_break(path: Path) -> dict[str, Any]:
    """Read the record of a break, with its root as bytes and its `place`. Raises ProblemError."""
    place = f"breaks/{path.name}"
    raw = read(path, place)
    try:
        given = json.loads(raw.decode())
        name, previous, lost = given["name"], given["previous"], given["lost"]
        base, root = given["origin"].removesuffix(f"/{name}"), unbase64(given["root"])
        record = {each: given[each] for each in ("size", "signed", "archived")}
        whole = all(type(each) is int and 0 <= each < 1 << 53 for each in record.values())
        record |= {"version": 1, "name": name, "previous": previous, "lost": sorted(set(lost))}
        previous_origin = f"{base}/{previous}" if previous else base
        record |= {"origin": f"{base}/{name}", "previous_origin": previous_origin}
        # Names rise from log to log, so no record hides its own log or forms a cycle.
        named = all(map(LOG_NAME.fullmatch, [name, *lost])) and max(previous, *lost, "") < name
        # Rebuilt from its variable members and compared, as for a manifest.
        exact = canonical(record | {"root": base64.b64encode(root).decode()})
        fits = path.name == f"{name}.json" and base.endswith("/v1/audit") and len(root) == HASH
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ProblemError(place, "is not a record of a break") from None
    if raw != exact or not (whole and named and fits):
        raise ProblemError(place, "is not a record of a break")
    return record | {"root": root, "place": place}


def breaks(folder: Path) -> list[dict[str, Any]]:
    """The breaks that the newest log of an archive builds on, oldest first. Raises ProblemError."""
    found = {each["name"]: each for each in map(read_break, sorted((folder / "breaks").glob("*")))}
    lost = {name for record in found.values() for name in record["lost"]}
    line, name = list[dict[str, Any]](), max(found.keys() - lost, default="")
    while name:
        if name not in found:
            raise ProblemError("breaks", f"has no record of {name}")
        line.append(found[name])
        name = found[name]["previous"]
    return line[::-1]


def break_name(record: dict[str, Any]) -> str:
    """The text that accepts exactly this break."""
    return f"{record['name']}:{record['size']}:{record['root'].hex()}"


def parts(line: list[dict[str, Any]]) -> list[Part]:
    """The logs that build on each other, oldest first."""
    found, signed, archived = list[Part](), ENDLESS, ENDLESS
    for record in reversed(line):
        found.append(Part(f"log-{record['name']}/", record["origin"], signed, archived))
        signed, archived = min(signed, record["signed"]), min(archived, record["archived"])
    return [*found, Part("", line[0]["previous_origin"] if line else "", signed, archived)][::-1]


def number_of(place: str) -> int:
    """The number in a file's name; -1 for another name, which is refused when it is read."""
    return int(found[1]) if (found := re.fullmatch(r".*/([0-9]{20})(\.json)?", place)) else -1


def canonical(value: object) -> bytes:
    """RFC 8785 without fractions or names beyond U+D7FF. Raises ValueError (lone surrogate)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def read(path: Path, place: str) -> bytes:
    data = path.read_bytes() if path.is_file() and path.stat().st_size <= MAX_FILE else b""
    if not data:
        raise ProblemError(place, "is missing, empty or too large")
    return data


def unbase64(text: str) -> bytes:
    """Decode canonical standard base64. Raises ValueError."""
    raw = base64.b64decode(text, validate=True)
    if base64.b64encode(raw).decode() != text:
        raise ValueError(text)
    return raw


class Trust:
    """The keys the user trusts, and the one log that everything must belong to."""

    def __init__(self, vkeys: str) -> None:
        """C2SP verifier keys, one a line; skips empty and # lines. Raises ValueError."""
        self.keys: dict[tuple[str, bytes], tuple[int, Ed25519PublicKey]] = {}
        # The folder's logs, oldest first; empty until the first note is read.
        self.origins, self.newest = list[str](), 0
        for line in vkeys.splitlines():
            if line and not line.startswith("#"):
                match = VKEY.fullmatch(line)
                raw = unbase64(match[3]) if match else b"?"
                named = sha256(f"{match[1]}\n".encode() + raw).digest()[:4] if match else b""
                if not match or raw[0] not in {LOG_KEY, WITNESS_KEY} or named.hex() != match[2]:
                    raise ValueError(f"Not an Ed25519 verifier key: {line[:200]!a}")
                self.keys[match[1], named] = raw[0], Ed25519PublicKey.from_public_bytes(raw[1:])
        if not self.keys:
            raise ValueError("No verifier key was given.")

    def checkpoint(self, raw: bytes, place: str, expected: str = "") -> Checkpoint:
        """Verify a note by a trusted key of its log. Raises ProblemError.

        The log must be `expected`, else one that the folder continues, else the first one seen.
        """
        match = NOTE.fullmatch(raw.decode(errors="replace"))
        if not match or match[0].encode() != raw:
            raise ProblemError(place, "is not a signed checkpoint")
        text, origin, size = match[1].encode(), match[2], int(match[3])
        try:
            root = unbase64(match[4])
            signed = [self._signed(line, text, origin) for line in match[5].split("\n")[:-1]]
        except ValueError:
            raise ProblemError(place, "is not a signed checkpoint") from None
        except InvalidSignature:
            raise ProblemError(place, "has a bad signature by a trusted key") from None
        if not any(signed):
            raise ProblemError(place, "has no signature by a trusted key of its log")
        self.newest = max(self.newest, size)
        self.origins = self.origins or [origin]
        if origin not in ([expected] if expected else self.origins):
            raise ProblemError(place, "belongs to another log")
        return Checkpoint(place, size, root)

    def _signed(self, line: str, text: bytes, origin: str) -> bool:
        """Is this the log's signature? Skips unknown keys. Raises ValueError, InvalidSignature."""
        _, name, encoded = line.split(" ")
        raw = unbase64(encoded)
        if not raw[4:]:
            raise ValueError(line)
        kind, key = self.keys.get((name, raw[:4]), (0, None))
        if kind == WITNESS_KEY:
            text = f"cosignature/v1\ntime {int.from_bytes(raw[4:12])}\n".encode() + text
            raw = raw[8:]
        if key:
            key.verify(raw[4:], text)
        return kind == LOG_KEY and name == origin


def node(left: bytes, right: bytes) -> bytes:
    return sha256(b"\1" + left + right).digest()


class Log:
    """One pass over all lines. It keeps only the roots of full subtrees, largest first."""

    def __init__(self, folder: Path, trust: Trust) -> None:
        self.folder, self.trust = folder, trust
        self.size, self.peaks = 0, list[bytes]()
        self.marks: list[Checkpoint] = []  # still to be compared, the next one last
        self.shown = Checkpoint("", 0, b"")  # the last one that matched
        self.breaks = list[dict[str, Any]]()

    def _places(self, part: str, end: int) -> list[str]:
        here = self.folder / part
        names = [path.name for path in here.iterdir()] if here.is_dir() else []
        places = sorted(f"{part}/{name}" for name in names if not name.startswith("."))
        return [place for place in places if number_of(place) < end]

    def verify(self, old: list[Path], accepted: list[str]) -> None:
        """Raises ProblemError at the first fault, and at a break not among `accepted`."""
        logs = self._logs(accepted)
        kept = [self.trust.checkpoint(read(path, str(path)), str(path)) for path in old]
        self.marks = sorted([*kept, *self._checkpoints(logs)], key=lambda mark: mark.size)[::-1]
        archive, export = (self.folder / "segments").is_dir(), (self.folder / "lines.gz").is_file()
        if archive == export:
            raise ProblemError(".", "is not one archive or one export")
        if export:
            raw = read(self.folder / "checkpoint", "checkpoint")
            self._add("lines.gz", self.trust.checkpoint(raw, "checkpoint"))
        elif not self._segments(logs):
            raise ProblemError("segments", "is empty")
        for mark in kept:
            if mark.size > self.size:
                raise ProblemError(mark.place, "covers a larger tree, so lines are missing")

    def _logs(self, accepted: list[str]) -> list[Part]:
        self.breaks = breaks(self.folder)
        for record in self.breaks:
            if break_name(record) not in accepted:
                lost = f"a restore lost the later events of {record['previous_origin']}"
                text = f"the log breaks after {record['size']} events: {lost}"
                raise ProblemError(record["place"], f"{text}; --accept-break {break_name(record)}")
        logs = parts(self.breaks)
        self.trust.origins = [part.origin for part in logs if part.origin]
        return logs

    def _checkpoints(self, logs: list[Part]) -> Iterator[Checkpoint]:
        for part in logs:
            for place in self._places(f"{part.folder}checkpoints", part.signed + 1):
                mark = self.trust.checkpoint(read(self.folder / place, place), place, part.origin)
                if place != f"{part.folder}checkpoints/{mark.size:020}":
                    raise ProblemError(place, "does not have the size in its name")
                yield mark
        for record in self.breaks:
            yield Checkpoint(record["place"], record["size"], record["root"])

    def _segments(self, logs: list[Part]) -> str | None:
        previous = None
        for part in logs:
            for place in self._places(f"{part.folder}segments", part.archived):
                previous = self._segment(place, part, previous)
        return previous

    def _segment(self, place: str, part: Part, previous: str | None) -> str:
        """Check a manifest, its objects and lines. Returns the digest the next one must name."""
        first, raw, objects = self.size, read(self.folder / place, place), dict[str, Any]()
        if place != f"{part.folder}segments/{first:020}.json":
            raise ProblemError(place, "leaves a gap or overlaps")
        whole = True
        try:
            given = json.loads(raw.decode())
            head = self.trust.checkpoint(given["checkpoint"].encode(), place, part.origin)
            for what, ending in ("lines", "lines.gz"), ("parquet", "parquet"):
                digest, length = given[what]["sha256"], given[what]["bytes"]
                key = f"objects/{digest}.{ending}"
                objects[what] = {"key": key, "sha256": digest, "bytes": length}
                whole &= type(length) is int and bool(re.fullmatch("[0-9a-f]{64}", digest))
            # Rebuilt from its variable members and compared: no other member, no other spelling.
            origin = part.origin or self.trust.origins[0]
            wanted = {**objects, "version": 1, "origin": origin, "first": first, "end": head.size}
            exact = canonical(wanted | {"previous": previous, "checkpoint": given["checkpoint"]})
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
            raise ProblemError(place, "is not a manifest") from None
        if head.size <= first or raw != exact or not whole:
            raise ProblemError(place, "is not the manifest that must follow here")
        for each in objects.values():
            self._compare(each["key"], each["sha256"], each["bytes"])
        self._add(objects["lines"]["key"], head)
        return sha256(raw).hexdigest()

    def _compare(self, key: str, digest: str, length: int) -> None:
        path = self.folder / key
        if path.is_file() and path.stat().st_size == length:
            with path.open("rb") as file:
                if file_digest(file, "sha256").hexdigest() == digest:
                    return
        raise ProblemError(key, "is missing, or differs from what the manifest names")

    def _add(self, place: str, head: Checkpoint) -> None:
        """Read one file of lines, which lead to the tree of `head`."""
        turn = self._meet()
        for line in self._lines(place):
            size, match = self.size, LINE.match(line)
            if not match or len(line) > MAX_LINE:
                raise ProblemError(place, "has a malformed line")
            if int(match[1]) != size or size == head.size:
                raise ProblemError(place, "has a line with the wrong number")
            salt = base64.urlsafe_b64decode(match[2] + b"=")
            entry = sha256(b"agentauth/event/v1\0" + salt + line[match.end() :]).digest()
            peak = sha256(b"\0" + entry).digest()
            # Adding one carries over the size's trailing one bits; each carry joins two subtrees.
            while size & 1:
                peak, size = node(self.peaks.pop(), peak), size >> 1
            self.peaks.append(peak)
            self.size += 1
            if self.size >= turn:
                turn = self._meet()
        if self.size != head.size:
            raise ProblemError(place, "has too few lines")
        self._agree(head)

    def _lines(self, place: str) -> Iterator[bytes]:
        """The lines of a file, holding one chunk at a time."""
        inflate, rest = zlib.decompressobj(wbits=31), b""
        with (self.folder / place).open("rb") as file:
            while not inflate.eof:
                packed = inflate.unconsumed_tail or file.read(CHUNK)
                try:
                    *lines, rest = (rest + inflate.decompress(packed, CHUNK)).split(b"\n")
                except zlib.error:
                    packed = b""
                if not packed:
                    raise ProblemError(place, "is not complete gzip", self.shown.size)
                yield from lines
                if len(rest) > MAX_LINE:
                    yield rest
            if inflate.unused_data or file.read(1):
                raise ProblemError(place, "has data after its end", self.shown.size)
        if rest:
            raise ProblemError(place, "ends in the middle of a line")

    def _meet(self) -> int:
        """Compare with each checkpoint up to this size. Returns the size of the next one."""
        while self.marks and self.marks[-1].size <= self.size:
            self._agree(self.marks.pop())
        return self.marks[-1].size if self.marks else ENDLESS

    def _agree(self, mark: Checkpoint) -> None:
        root = self.peaks[-1] if self.peaks else sha256().digest()
        for peak in self.peaks[-2::-1]:
            root = node(peak, root)
        if (mark.size, mark.root) != (self.size, root):
            raise ProblemError(mark.place, "does not have the root of these lines", self.shown.size)
        self.shown = mark


def verdict(trust: Trust, shown: Checkpoint, events: int) -> dict[str, Any]:
    root = base64.b64encode(shown.root).decode() or None
    good = {"ok": True, "tree_size": shown.size, "root_hash": root, "events": events}
    return good | {"newest_checkpoint": trust.newest, "first_bad": None, "problem": None}


def check(options: argparse.Namespace) -> dict[str, Any]:
    """The result to print, with the largest verified tree. Raises OSError, ValueError."""
    log = Log(options.folder, Trust(options.trusted_keys.read_text("utf-8")))
    bad = dict[str, Any]()
    try:
        log.verify(options.old_checkpoint, options.accept_break)
    except (ProblemError, OSError) as problem:
        first_bad = log.size if (at := getattr(problem, "first_bad", None)) is None else at
        bad = {"ok": False, "problem": str(problem), "first_bad": first_bad}
    said = verdict(log.trust, log.shown, log.shown.size if bad else log.size) | bad
    return said | ({"breaks": [break_name(record) for record in log.breaks]} if log.breaks else {})


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", type=Path, help="an export or an archive")
    add("--trusted-keys", type=Path, required=True, help="a file of C2SP vkeys, one per line")
    add("--old-checkpoint", type=Path, action="append", default=[], help="kept from an earlier day")
    add("--accept-break", action="append", default=[], help="accept this break of the log")


def main() -> int:
    """0: all is verified; 1: something is wrong; 2: bad usage."""
    parser = argparse.ArgumentParser(description="Check an audit log without its server.")
    arguments(parser)
    try:
        answer = check(parser.parse_args())
    except (OSError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0 if answer["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
