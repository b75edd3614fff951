"""Check one proof from an audit log without its server: an event is in it, or a tree appends to
another.

`python verify_log_proof.py --help`. It needs verify_log.py beside it, which reads keys and notes.
An event is a file as the events API returns it, with its `salt`; its `openings` are compared with
the commitments in `data`. Formats: docs/protocol.md section 9; c2sp.org/tlog-proof; RFC 9162
sections 2.1.3 and 2.1.4; RFC 8785. Numbers with a fraction and names beyond U+D7FF are refused; no
event has them.
"""

import argparse
import base64
import json
import re
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

if __package__:
    from . import verify_log as log
else:  # A script, with the other one beside it.
    import verify_log as log  # type: ignore[import-not-found,no-redef]

MAX_PATH = 63
BUNDLE = re.compile(
    r"c2sp\.org/tlog-proof@v1\n(?:extra ([A-Za-z0-9+/=]+)\n)?index "
    rf"{log.NUMBER}\n((?:[A-Za-z0-9+/=]+\n)*)\n(.*)",
    re.DOTALL,
)
# Options that belong together; each set has one proof.
WAYS = (
    {"inclusion", "checkpoint"},
    {"inclusion", "checkpoint", "event"},
    {"bundle", "event"},
    {"consistency", "first", "second"},
)


def rise(index: int, size: int, path: list[bytes], leaf: bytes) -> bytes:
    """The root that the path of leaf `index` gives (RFC 9162 section 2.1.3). Raises ValueError."""
    if size == 1:
        if path:
            raise ValueError(path)
        return leaf
    half = _half(size)
    *path, side = path
    if index < half:
        return log.node(rise(index, half, path, leaf), side)
    return log.node(side, rise(index - half, size - half, path, leaf))


def grow(first: int, second: int, path: list[bytes], known: list[bytes]) -> tuple[bytes, bytes]:
    """The roots of both trees computed from a path (RFC 9162 section 2.1.4). Raises ValueError.

    `known` is the root of the first tree; the path omits it if it is a full subtree of the second.
    """
    if first == second:
        [same] = known + path
        return same, same
    half = _half(second)
    *path, side = path
    if first <= half:
        # What lies to the right is in the second tree only.
        old, new = grow(first, half, path, known)
        return old, log.node(new, side)
    old, new = grow(first - half, second - half, path, [])
    return log.node(side, old), log.node(side, new)


def _half(size: int) -> int:
    """Where a tree splits: the largest power of two below its size."""
    return 1 << (size - 1).bit_length() - 1


def read_json(path: Path) -> Any:
    """JSON that all readers understand in the same way. Raises ProblemError."""

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs) or any(name > "\ud7ff" for name, _ in pairs):
            raise ValueError(pairs)
        return dict(pairs)

    def whole(text: str) -> int:
        if abs(int(text)) >= 1 << 53:
            raise ValueError(text)
        return int(text)

    numbers: dict[str, Any] = {"parse_int": whole, "parse_float": whole, "parse_constant": whole}
    try:
        value = json.loads(log.read(path, str(path)).decode(), object_pairs_hook=members, **numbers)
        log.canonical(value)
    except (ValueError, RecursionError):
        raise log.ProblemError(str(path), "is not strict JSON") from None
    return value


def read_event(path: Path) -> tuple[bytes, int | None]:
    """An event's leaf hash, and its number if the file has one. Raises ProblemError."""
    event, opened = read_json(path), {}
    try:
        number, openings = event.pop("leaf_index", None), event.pop("openings", {})
        number = None if number is None else _number(number)
        text = b"agentauth/event/v1\0" + _salt(event.pop("salt")) + log.canonical(event)
        for member, opening in openings.items():
            field = (
                b"agentauth/field/v1\0" + _salt(opening["salt"]) + log.canonical(opening["value"])
            )
            commitment = base64.urlsafe_b64encode(sha256(field).digest()).decode().rstrip("=")
            # Further members beside salt and value would be unproved.
            opened[member] = opening.keys() == {"salt", "value"} and event["data"][member] == {
                "commitment": commitment
            }
    except (KeyError, TypeError, AttributeError, ValueError):
        raise log.ProblemError(str(path), "is not an event with its salt") from None
    if not all(opened.values()):
        raise log.ProblemError(str(path), "discloses a value that it did not commit to")
    return sha256(b"\0" + sha256(text).digest()).digest(), number


def _salt(text: str) -> bytes:
    raw = base64.urlsafe_b64decode(text + "=")
    if len(raw) != log.HASH or base64.urlsafe_b64encode(raw).decode() != text + "=":
        raise ValueError(text)
    return raw


def _number(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(value)
    return value


def _hashes(texts: list[str]) -> list[bytes]:
    hashes = [log.unbase64(text) for text in texts]
    if (
        not isinstance(texts, list)
        or len(hashes) > MAX_PATH
        or any(len(each) != log.HASH for each in hashes)
    ):
        raise ValueError(texts)
    return hashes


def check_inclusion(options: argparse.Namespace, trust: log.Trust) -> log.Checkpoint:
    """Verify inclusion; returns the tree. Raises ProblemError, and as malformed members do."""
    event = read_event(options.event) if options.event else None
    if options.bundle:
        match = BUNDLE.fullmatch(log.read(options.bundle, str(options.bundle)).decode())
        if not (match and event):
            raise log.ProblemError(str(options.bundle), "is not a log proof")
        log.unbase64(match[1] or "")
        head = trust.checkpoint(match[4].encode(), str(options.bundle))
        index, path, leaf = int(match[2]), _hashes(match[3].split()), event[0]
    else:
        head = trust.checkpoint(
            log.read(options.checkpoint, str(options.checkpoint)), str(options.checkpoint)
        )
        proof = read_json(options.inclusion)
        index = _number(proof["leaf_index"])
        path = _hashes(proof["audit_path"])
        [leaf, root] = _hashes([proof["leaf_hash"], proof["root_hash"]])
        if _number(proof["tree_size"]) != head.size or root != head.root:
            raise log.ProblemError(str(options.inclusion), "is not for the tree of the checkpoint")
    if event and (leaf != event[0] or event[1] not in {None, index}):
        raise log.ProblemError(str(options.event), "is not the event that the proof is for")
    if index >= head.size or rise(index, head.size, path, leaf) != head.root:
        raise ValueError(index)
    return head


def check_consistency(options: argparse.Namespace, trust: log.Trust) -> log.Checkpoint:
    """Verify consistency; returns the newer tree. Raises as `check_inclusion`."""
    first, second = (
        trust.checkpoint(log.read(each, str(each)), str(each))
        for each in (options.first, options.second)
    )
    proof = read_json(options.consistency)
    path = _hashes(proof["consistency_path"])
    if (_number(proof["first"]), _number(proof["second"])) != (first.size, second.size):
        raise log.ProblemError(str(options.consistency), "is not for the trees of the checkpoints")
    # Every tree appends to the empty one, so a proof from it would show nothing.
    if not 0 < first.size <= second.size or grow(first.size, second.size, path, [first.root]) != (
        first.root,
        second.root,
    ):
        raise ValueError(path)
    return second


def check(options: argparse.Namespace) -> dict[str, Any]:
    """The result to print.

    Raises OSError and ValueError for bad keys and arguments that do not fit together.
    """
    if {name for name in set.union(*WAYS) if getattr(options, name)} not in WAYS:
        raise ValueError(
            "Give --inclusion with --checkpoint, --bundle with --event, or --consistency with "
            "--first and --second."
        )
    trust = log.Trust(options.trusted_keys.read_text("utf-8"))
    proof, way = options.consistency or options.inclusion or options.bundle, check_inclusion
    if options.consistency:
        way = check_consistency
    try:
        problem, shown = None, way(options, trust)
    except (log.ProblemError, OSError) as error:
        problem = str(error)
    except (ValueError, KeyError, TypeError):
        problem = f"{proof}: does not verify"
    if problem:
        return log.verdict(trust, log.Checkpoint("", 0, b""), 0) | {"ok": False, "problem": problem}
    return log.verdict(trust, shown, 1 if options.event else 0)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trusted-keys", type=Path, required=True, help="a file of C2SP vkeys, one per line"
    )
    for name, text in {
        "inclusion": "the answer of /v1/audit/proof/inclusion",
        "checkpoint": "the signed note of the tree it names",
        "bundle": "the same as a C2SP tlog-proof",
        "event": "the event, with its salt",
        "consistency": "the answer of /v1/audit/proof/consistency",
        "first": "the older tree's signed note",
        "second": "the newer tree's signed note",
    }.items():
        parser.add_argument(f"--{name}", type=Path, help=text)


def main() -> int:
    """0: verified; 1: not verified; 2: bad usage."""
    parser = argparse.ArgumentParser(description="Check a proof from an audit log.")
    arguments(parser)
    try:
        answer = check(parser.parse_args())
    except (OSError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0 if answer["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
