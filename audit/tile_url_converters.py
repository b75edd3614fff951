"""URL converters for tiles (c2sp.org/tlog-tiles): a level, and a number with a partial width."""

from dataclasses import dataclass

from audit.log.tree_reader import TILE_WIDTH

_ELEMENT = 1000


@dataclass(frozen=True, slots=True)
class TilePlace:
    """Tile `number` of its level, and how many of its hashes are requested: `width`, 1 to 256."""

    number: int
    width: int


class LevelConverter:
    """0 to 63, without leading zeros."""

    regex = "[1-5]?[0-9]|6[0-3]"

    def to_python(self, value: str) -> int:
        return int(value)

    def to_url(self, value: int) -> str:
        return str(value)


class TileConverter:
    """Three-digit elements, all but the last after an `x`; if partial, then `.p/` and the width.

    The width is 1 to 255. A number has one name: no leading zero elements. Seven elements are more
    than any log has.
    """

    regex = (
        "(?:x(?!000)[0-9]{3}/(?:x[0-9]{3}/){0,5})?[0-9]{3}"
        "(?:[.]p/(?:[1-9][0-9]?|1[0-9]{2}|2[0-4][0-9]|25[0-5]))?"
    )

    def to_python(self, value: str) -> TilePlace:
        name, _, width = value.partition(".p/")
        return TilePlace(int(name.replace("x", "").replace("/", "")), int(width or TILE_WIDTH))

    def to_url(self, value: TilePlace) -> str:
        *higher, last = _elements(value.number)
        name = "".join(f"x{element}/" for element in higher) + last
        return name if value.width == TILE_WIDTH else f"{name}.p/{value.width}"


def _elements(number: int) -> list[str]:
    rest, last = divmod(number, _ELEMENT)
    return [*(_elements(rest) if rest else []), f"{last:03}"]
