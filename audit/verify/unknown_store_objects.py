"""Find objects in the external store that the log did not write; `verify_audit` lists them."""

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from audit.checkpoints import checkpoint_copies, endings_in_store, log_breaks
from audit.stores import Store

# The prefixes that the log lists, and which names below them are its own. Other objects it reads by
# name.
_OURS: Final[Mapping[str, Callable[[str], bool]]] = {
    checkpoint_copies.PREFIX: lambda key: checkpoint_copies.size_of(key) is not None,
    log_breaks.PREFIX: lambda key: bool(log_breaks.break_of(key)),
    endings_in_store.PREFIX: endings_in_store.is_ending,
}


def strange_keys(store: Store, *, since: int = 0) -> Iterator[str]:
    """The keys in a store (from `seen_store`) below the log's prefixes that the log did not write.

    Skips keys that sort before the checkpoint or ending of `since` events.
    """
    for prefix, is_ours in _OURS.items():
        begin = "" if prefix == log_breaks.PREFIX or not since else f"{prefix}{since:020d}"
        yield from (key for key in store.keys(prefix, after=begin) if not is_ours(key))
