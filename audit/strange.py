"""Objects in the store outside that the log did not write: they are ignored, and `verify_audit` shows them."""

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from audit import breaks, copies, endings
from audit.stores import Store

# Where objects are found by listing, and which names there are the log's own. Elsewhere the log asks for names it knows.
_OURS: Final[Mapping[str, Callable[[str], bool]]] = {
    copies.PREFIX: lambda key: copies.size_of(key) is not None,
    breaks.PREFIX: lambda key: bool(breaks.break_of(key)),
    endings.PREFIX: endings.is_ending,
}


def strange_keys(store: Store, *, since: int = 0) -> Iterator[str]:
    """The keys in a store, as the log sees it (`seen_store`), that look like the log's and are not.

    Those that sort before the checkpoint or ending of `since` events are not listed.
    """
    for prefix, is_ours in _OURS.items():
        begin = "" if prefix == breaks.PREFIX or not since else f"{prefix}{since:020d}"
        yield from (key for key in store.keys(prefix, after=begin) if not is_ours(key))
