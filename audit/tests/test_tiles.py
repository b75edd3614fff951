"""Files of the log's tree: their names, and the ones that a tree of some size has."""

import pytest

from agentauth.protocol.errors import ChainError
from agentauth.protocol.log_hashes import leaf_hash
from audit.archive.tiles import Tiles, tile_key


@pytest.mark.parametrize(
    ("number", "width", "key"),
    [
        (0, 256, "tile/0/000"),
        (999, 256, "tile/0/999"),
        (1_000, 256, "tile/0/x001/000"),
        (1_234_067, 256, "tile/0/x001/x234/067"),
        (1_234_067, 3, "tile/0/x001/x234/067.p/3"),
    ],
)
def test_tile_number_is_written_in_groups_of_three(number: int, width: int, key: str) -> None:
    """As c2sp.org/tlog-tiles prescribes."""
    assert tile_key("0", number, width) == key


@pytest.mark.parametrize(
    ("size", "partial"),
    [
        (0, []),
        (255, ["tile/entries/000.p/255", "tile/0/000.p/255"]),
        (256, ["tile/1/000.p/1"]),
        (257, ["tile/entries/001.p/1", "tile/0/001.p/1", "tile/1/000.p/1"]),
    ],
)
def test_only_incomplete_files_are_partial(size: int, partial: list[str]) -> None:
    tiles = Tiles()
    full = [tile.key for number in range(size) for tile in tiles.add(b"%d" % number)]
    assert [tile.key for tile in tiles.partial()] == partial
    assert full == ["tile/entries/000", "tile/0/000"] * (size >= 256)


@pytest.mark.parametrize(
    ("size", "hashes", "entries"),
    [
        # One hash and one peak, but of one leaf instead of two.
        (2, [[leaf_hash(b"0")]], [b"0", b"1"]),
        (2, [[leaf_hash(b"0"), leaf_hash(b"1")]], [b"0"]),
        (256, [[leaf_hash(b"0")], []], []),
        (1, [], [b"0"]),
    ],
)
def test_tree_with_a_gap_cannot_be_continued(
    size: int, hashes: list[list[bytes]], entries: list[bytes]
) -> None:
    with pytest.raises(ChainError, match=f"does not have {size} leaves"):
        Tiles(size, hashes, entries)
