"""The log's hashes: event entries, leaves, links, and RFC 9162 Merkle trees.

An event's entry is its salted hash. A leaf hashes an entry; the tree is built of leaves, and each
link hashes the previous link and a leaf. `merkle_proofs` makes and verifies proofs. Sections
without an RFC number are those of docs/protocol.md.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from .encoding import b64u_encode, canonical_json, sha256
from .errors import ChainError

HASH_BYTES: Final = 32
SALT_BYTES: Final = 32
EMPTY_LINK: Final = bytes(HASH_BYTES)
# A tile holds the hashes of one level of a subtree of this height: 256 (c2sp.org/tlog-tiles).
TILE_HEIGHT: Final = 8
_EVENT_TAG: Final = b"agentauth/event/v1\0"
_FIELD_TAG: Final = b"agentauth/field/v1\0"
# One leading byte separates leaves, nodes and links. Without it an attacker could present an inner
# node as a leaf (a second preimage; RFC 9162 section 2.1.1), or a link as either.
_LEAF: Final = b"\0"
_NODE: Final = b"\1"
_LINK: Final = b"\2"


def entry_hash(event: Mapping[str, object], salt: bytes) -> bytes:
    """The entry of an event (section 9): SHA-256(tag ‖ 0x00 ‖ 32-byte salt ‖ RFC 8785 event).

    32 bytes. Events are short and predictable: without the salt, anyone could guess an event and
    confirm the guess by its published leaf. Raises ChainError for a salt of another length,
    EncodingError for an event without a canonical form.
    """
    return canonical_entry_hash(canonical_json(event), salt)


def canonical_entry_hash(text: bytes, salt: bytes) -> bytes:
    """`entry_hash` for an event already in RFC 8785 bytes. Raises ChainError."""
    return sha256(_EVENT_TAG + _salt(salt) + text)


def field_commitment(value: object, salt: bytes) -> str:
    """The commitment to a personal member of an event (section 9).

    It is base64url of SHA-256(tag ‖ 0x00 ‖ salt ‖ RFC 8785 value).

    Deleting salt and value erases the personal data; the event and every hash above it stay valid.
    Raises ChainError and EncodingError.
    """
    return canonical_field_commitment(canonical_json(value), salt)


def canonical_field_commitment(text: bytes, salt: bytes) -> str:
    """`field_commitment` for a value already in RFC 8785 bytes. Raises ChainError."""
    return b64u_encode(sha256(_FIELD_TAG + _salt(salt) + text))


def leaf_hash(entry: bytes) -> bytes:
    """SHA-256(0x00 ‖ entry), RFC 9162 section 2.1.1. 32 bytes."""
    return sha256(_LEAF + entry)


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256(0x01 ‖ left ‖ right), RFC 9162 section 2.1.1. 32 bytes."""
    return sha256(_NODE + left + right)


def link(previous: bytes, leaf: bytes) -> bytes:
    """link_n = SHA-256(0x02 ‖ link_{n−1} ‖ leaf_hash_n), EMPTY_LINK before the first (section 9).

    32 bytes. A changed, dropped or inserted leaf changes every later link. Raises ChainError unless
    both are 32 bytes: if lengths could vary, two different pairs could concatenate to the same
    bytes, and so have the same hash.
    """
    return sha256(_LINK + check_hash(previous) + check_hash(leaf))


@dataclass(frozen=True, slots=True)
class TreeHead:
    """The size of a tree and its root: what a checkpoint signs."""

    size: int
    root: bytes


class Subtree(NamedTuple):
    """The root of one full subtree of 2**`height` leaves; `number` counts them from the left."""

    height: int
    number: int
    root: bytes


class CompactTree:
    """A Merkle tree that is appended to and keeps only the roots of its full subtrees: at most one
    per bit of its size.

    Thirty hashes are enough to continue a log of a billion leaves. `peaks` (largest subtree first)
    and `size` are all a caller has to store.
    """

    __slots__ = ("_peaks", "_size")

    def __init__(self, size: int = 0, peaks: Iterable[bytes] = ()) -> None:
        """Continue a tree. Raises ChainError if the number of peaks does not fit the size."""
        self._size = size
        self._peaks = [check_hash(peak) for peak in peaks]
        if size < 0 or size.bit_count() != len(self._peaks):
            raise ChainError("The stored tree does not match its size.")

    @property
    def size(self) -> int:
        """How many leaves the tree has."""
        return self._size

    @property
    def peaks(self) -> tuple[bytes, ...]:
        """The roots of the full subtrees, largest first."""
        return tuple(self._peaks)

    def append(self, leaf: bytes, completed: list[Subtree] | None = None) -> None:
        """Append one leaf hash (32 bytes).

        Adds to `completed` each subtree that this leaf completes and whose height is a multiple of
        TILE_HEIGHT. Raises ChainError.
        """
        node = check_hash(leaf)
        # Adding one to the size carries over its trailing one bits; each carry joins two subtrees
        # of equal size.
        size, height = self._size, 0
        self._size += 1
        while size & 1:
            node = node_hash(self._peaks.pop(), node)
            size >>= 1
            height += 1
            if completed is not None and height % TILE_HEIGHT == 0:
                completed.append(Subtree(height, (self._size >> height) - 1, node))
        self._peaks.append(node)

    def root(self) -> bytes:
        """The tree's root (RFC 9162 section 2.1.1); SHA-256 of no bytes for the empty tree.

        32 bytes.
        """
        if not self._peaks:
            return sha256(b"")
        node = self._peaks[-1]
        for peak in reversed(self._peaks[:-1]):
            node = node_hash(peak, node)
        return node

    def head(self) -> TreeHead:
        """Size and root, taken at one moment."""
        return TreeHead(self._size, self.root())


def check_hash(value: bytes) -> bytes:
    """Return the hash. Raises ChainError unless it has 32 bytes."""
    if len(value) != HASH_BYTES:
        raise ChainError("A hash must be 32 bytes.")
    return value


def _salt(value: bytes) -> bytes:
    # A fixed length: salt and value are joined without a separator, so two different pairs could
    # otherwise concatenate to the same bytes, and so have the same hash.
    if len(value) != SALT_BYTES:
        raise ChainError("A salt must be 32 bytes.")
    return value
