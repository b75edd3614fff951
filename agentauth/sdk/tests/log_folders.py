"""Makes folders of logs and proofs, valid ones and ones with any part exchanged.

Shares no code with the verifiers.
"""

import base64
import gzip
import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

ORIGIN = "log.example/v1/audit"
WITNESS = "witness.example/w1"
EXTENSIONS = {"lines": "lines.gz", "parquet": "parquet"}


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def pack(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


def unpack(data: bytes) -> bytes:
    return gzip.decompress(data)


def jcs(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def b64u(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


class Key:
    """An Ed25519 key under a name; `kind` 4 is a witness's."""

    def __init__(self, seed: str, name: str = ORIGIN, kind: int = 1) -> None:
        self.name, self.kind = name, kind
        self.private = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(seed.encode()).digest())
        public = self.private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.material = bytes([kind]) + public
        self.id = hashlib.sha256(f"{name}\n".encode() + self.material).digest()[:4]
        self.vkey = f"{name}+{self.id.hex()}+{b64(self.material)}"

    def line(self, text: str, at: int = 1_700_000_000) -> str:
        if self.kind == 4:
            stamp = at.to_bytes(8, "big")
            signature = stamp + self.private.sign(f"cosignature/v1\ntime {at}\n{text}".encode())
        else:
            signature = self.private.sign(text.encode())
        return f"— {self.name} {b64(self.id + signature)}\n"


LOG_KEY = Key("log")
NEXT_KEY = Key("the log's next")
WITNESS_KEY = Key("witness", WITNESS, 4)
STRANGER = Key("stranger")


def note(text: str, *keys: Key) -> str:
    return text + "\n" + "".join(key.line(text) for key in keys)


def salt_of(seed: str, index: int) -> bytes:
    return hashlib.sha256(f"{seed} salt {index}".encode()).digest()


def event_of(seed: str, index: int) -> dict[str, Any]:
    field_salt = salt_of(seed, index + 1_000_000)
    committed = hashlib.sha256(b"agentauth/field/v1\0" + field_salt + jcs("Jörg")).digest()
    return {
        "id": f"0198c0de-0000-7000-8000-{index:012d}",
        "kind": "registry.grant.approved",
        "at": "2026-11-25T09:30:00.123456Z",
        "actor": {"kind": "human", "id": f"{seed}-{index}"},
        "outcome": "success",
        "request_id": f"r-{index}",
        "data": {"n": index, "süß": [True, None, '\n"\\'], "name": {"commitment": b64u(committed)}},
    }


@dataclass
class MadeLog:
    """A number of events in order, and a signed note for every size."""

    count: int = 14
    seed: str = "history"
    key: Key = LOG_KEY
    origin: str = ORIGIN
    events: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.events = [event_of(self.seed, index) for index in range(self.count)]
        self.lines = [self.line(index) for index in range(self.count)]
        self.tree = cache(self._tree)

    def line(self, index: int) -> bytes:
        return (
            f"{index} {b64u(salt_of(self.seed, index))} ".encode() + jcs(self.events[index]) + b"\n"
        )

    def leaf(self, index: int) -> bytes:
        text = b"agentauth/event/v1\0" + salt_of(self.seed, index) + jcs(self.events[index])
        return hashlib.sha256(b"\0" + hashlib.sha256(text).digest()).digest()

    def _tree(self, start: int, end: int) -> bytes:
        """MTH of RFC 9162 section 2.1.1, word for word."""
        if end == start:
            return hashlib.sha256().digest()
        if end - start == 1:
            return self.leaf(start)
        split = self.split(start, end)
        return hashlib.sha256(b"\1" + self.tree(start, split) + self.tree(split, end)).digest()

    @staticmethod
    def split(start: int, end: int) -> int:
        width = 1
        while width * 2 < end - start:
            width *= 2
        return start + width

    def path(self, index: int, start: int, end: int) -> list[bytes]:
        """PATH of RFC 9162 section 2.1.3.1."""
        if end - start == 1:
            return []
        split = self.split(start, end)
        if index < split:
            return [*self.path(index, start, split), self.tree(split, end)]
        return [*self.path(index, split, end), self.tree(start, split)]

    def proof(self, first: int, start: int, end: int, *, whole: bool = True) -> list[bytes]:
        """SUBPROOF of RFC 9162 section 2.1.4.1."""
        if first == end:
            return [] if whole else [self.tree(start, end)]
        split = self.split(start, end)
        if first <= split:
            return [*self.proof(first, start, split, whole=whole), self.tree(split, end)]
        return [*self.proof(first, split, end, whole=False), self.tree(start, split)]

    def text(self, size: int) -> str:
        return f"{self.origin}\n{size}\n{b64(self.tree(0, size))}\n"

    def note(self, size: int, *keys: Key) -> str:
        return note(self.text(size), *(keys or (self.key,)))

    def inclusion(self, index: int, size: int) -> dict[str, Any]:
        path = [b64(each) for each in self.path(index, 0, size)]
        shown = {"leaf_index": index, "tree_size": size, "leaf_hash": b64(self.leaf(index))}
        return shown | {"audit_path": path, "root_hash": b64(self.tree(0, size))}

    def consistency(self, first: int, second: int) -> dict[str, Any]:
        path = [b64(each) for each in self.proof(first, 0, second)]
        return {"first": first, "second": second, "consistency_path": path}

    def bundle(self, index: int, size: int) -> str:
        hashes = [b64(each) + "\n" for each in self.path(index, 0, size)]
        return f"c2sp.org/tlog-proof@v1\nindex {index}\n{''.join(hashes)}\n{self.note(size)}"

    def shown(self, index: int) -> dict[str, Any]:
        """The event as the events API returns it."""
        opening = {"salt": b64u(salt_of(self.seed, index + 1_000_000)), "value": "Jörg"}
        about = {
            "salt": b64u(salt_of(self.seed, index)),
            "leaf_index": index,
            "openings": {"name": opening},
        }
        return self.events[index] | about


class Folder:
    """A folder to verify, and what the auditor brings: keys, and checkpoints kept from earlier."""

    def __init__(self, path: Path, log: MadeLog) -> None:
        self.path, self.log = path, log
        self.keys: list[str] = [LOG_KEY.vkey]
        self.old: list[str] = []
        path.mkdir(parents=True)

    def write(self, name: str, data: bytes | str) -> Path:
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data if isinstance(data, bytes) else data.encode())
        return target

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def remove(self, name: str) -> None:
        (self.path / name).unlink()

    def edit(self, name: str, change: Callable[[bytes], bytes]) -> None:
        before = self.read(name)
        after = change(before)
        assert after != before, f"{name} is not changed"
        self.write(name, after)

    # An export.

    def export(self, size: int, *, lines: Iterable[bytes] | None = None) -> None:
        self.write("checkpoint", self.log.note(size))
        self.write("lines.gz", pack(b"".join(self.log.lines[:size] if lines is None else lines)))

    def edit_lines(
        self, change: Callable[[list[bytes]], list[bytes]], name: str = "lines.gz"
    ) -> None:
        before = unpack(self.read(name)).splitlines(keepends=True)
        self.write(name, pack(b"".join(change(list(before)))))

    # An archive.

    def archive(self, ends: Iterable[int], checkpoints: Iterable[int] = ()) -> None:
        first = 0
        for end in ends:
            self.segment(first, end)
            first = end
        for size in checkpoints:
            self.write(f"checkpoints/{size:020}", self.log.note(size))

    def segment(
        self, first: int, end: int, *, lines: Iterable[bytes] | None = None, **changes: Any
    ) -> dict[str, Any]:
        """Write a segment; `changes` are members of its manifest."""
        packed = pack(b"".join(self.log.lines[first:end] if lines is None else lines))
        objects = {"lines": packed, "parquet": f"PAR1 {first} {end} PAR1".encode()}
        parts = {}
        for part, data in objects.items():
            key = f"objects/{digest(data)}.{EXTENSIONS[part]}"
            self.write(key, data)
            parts[part] = {"key": key, "sha256": digest(data), "bytes": len(data)}
        before = sorted(self.path.glob(f"segments/{'[0-9]' * 20}.json"))
        before = [path for path in before if int(path.stem) < first]
        ours = {
            "version": 1,
            "origin": ORIGIN,
            "first": first,
            "end": end,
            "checkpoint": self.log.note(end),
        }
        previous = digest(before[-1].read_bytes()) if before else None
        manifest: dict[str, Any] = {**ours, "previous": previous, **parts, **changes}
        self.write(f"segments/{first:020}.json", jcs(manifest))
        return manifest

    def manifest(self, first: int) -> dict[str, Any]:
        read: dict[str, Any] = json.loads(self.read(f"segments/{first:020}.json"))
        return read

    def edit_manifest(self, at: int, **changes: Any) -> None:
        self.write(f"segments/{at:020}.json", jcs(self.manifest(at) | changes))

    # What the auditor brings.

    def keep(self, text: str) -> str:
        """The file of a checkpoint that an auditor kept."""
        path = self.path.parent / f"{self.path.name}-kept-{len(self.old)}"
        path.write_bytes(text.encode())
        self.old.append(str(path))
        return str(path)

    @property
    def key_file(self) -> Path:
        path = self.path.parent / f"{self.path.name}-keys"
        path.write_text("\n".join(["# trusted", *self.keys, ""]))
        return path
