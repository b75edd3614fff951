"""Tiles over HTTP: only within the newest checkpoint, only at paths of c2sp.org/tlog-tiles."""

from datetime import datetime

import pytest

from agentauth.protocol.log_hashes import CompactTree, leaf_hash
from audit.checkpoints.signing import EVERY
from audit.models import Checkpoint, Node
from audit.tests.proving import TILE, assert_refused, get, good, grow, opened, sign
from audit.tile_url_converters import TileConverter, TilePlace

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("signing")]


def tile_path(number: int, width: int = TILE) -> str:
    return TileConverter().to_url(TilePlace(number, width))


def test_the_tiles_rebuild_the_signed_tree(signed_log: Checkpoint) -> None:
    leaves = b"".join(good(f"tile/0/{tile_path(*at)}").content for at in ((0,), (1, 44)))
    bundle = b"".join(good(f"tile/entries/{tile_path(*at)}").content for at in ((0,), (1, 44)))
    assert (len(leaves), len(bundle)) == (300 * 32, 300 * 34)
    tree = CompactTree()
    for index in range(300):
        length, entry_ = bundle[34 * index :][:2], bundle[34 * index + 2 :][:32]
        assert length == b"\0\x20"
        assert leaf_hash(entry_) == leaves[32 * index :][:32]
        tree.append(leaf_hash(entry_))
    assert tree.root() == opened(good("checkpoint").content).checkpoint.root
    (node,) = Node.objects.values_list("hash", flat=True)
    assert good("tile/1/000.p/1").content == bytes(node)


def test_a_tile_never_changes_and_says_so(signed_log: Checkpoint) -> None:
    for path in ("tile/0/000", "tile/0/000.p/255", "tile/entries/001.p/44", "tile/1/000.p/1"):
        answer = good(path)
        assert answer["Content-Type"] == "application/octet-stream"
        assert answer["Cache-Control"] == "public, max-age=31536000, immutable"
    assert good("tile/0/000").content[: 255 * 32] == good("tile/0/000.p/255").content


BEYOND = [
    "0/001", "0/001.p/45", "0/001.p/64", "0/002.p/1", "0/x001/000", "1/000", "1/000.p/2",
    "1/001.p/1", "2/000.p/1", "63/000.p/1",
    "63/x999/x999/x999/x999/x999/x999/999", "entries/001", "entries/001.p/45", "entries/002.p/1",
]  # fmt: skip
OUTSIDE = [
    "", "0", "0/", "00/000", "01/000", "64/000", "-1/000", "+1/000", "a/000", "0/0", "0/00",
    "0/0000", "0/000/", "0/000000",
    "0/x000/000", "0/x000", "0/000/000", "0/x0/000", "0/X001/000", "0/x1000/000", "0/x001/x000",
    "0/xx01/000", "0//000", "/0/000",
    "0/000.p", "0/000.p/", "0/000.p/0", "0/000.p/01", "0/000.p/256", "0/000.p/1000", "0/000.p/-1",
    "0/000.p/1/", "0/000.p/x",
    "0/000p/1", "0/000-p/1", "0/000.P/1", "0/000.p/1.p/1", "0/000.p1", "0/entries/000",
    "entries/0/000", "entries", "entries/",
    "entries/x000/000", "Entries/000", "0/" + "x001/" * 7 + "000", "0/" + "x001/" * 700 + "000",
    "data/000", "0/٠٠٠",
]  # fmt: skip


def test_tile_beyond_the_newest_checkpoint_is_not_found(
    signed_log: Checkpoint, now: datetime
) -> None:
    """The leaves exist: 20 more than were signed."""
    for path in BEYOND:
        assert_refused(get(f"tile/{path}"), 404, "not_found")
    sign(now + EVERY)
    assert len(good("tile/0/001.p/64").content) == 64 * 32


def test_an_address_outside_the_grammar_of_tiles_is_not_found(signed_log: Checkpoint) -> None:
    for path in OUTSIDE:
        assert_refused(get(f"tile/{path}"), 404, "not_found")


def test_tile_before_the_first_checkpoint_is_not_found(now: datetime) -> None:
    grow(3, now=now)
    assert_refused(get("tile/0/000.p/1"), 404, "not_found")


@pytest.mark.parametrize(
    "number", [0, 7, 255, 999, 1000, 1_000_000, 1_234_067, 10**9, 2**63 // 256]
)
def test_a_tiles_number_is_read_as_it_is_written(number: int) -> None:
    for width in (1, 9, 10, 99, 100, 199, 200, 249, 250, 255, TILE):
        assert TileConverter().to_python(tile_path(number, width)) == TilePlace(number, width)
    assert tile_path(1_234_067) == "x001/x234/067"
    assert tile_path(67, 8) == "067.p/8"
