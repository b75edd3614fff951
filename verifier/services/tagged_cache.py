"""An LRU cache whose values are invalidated by the subjects that they rest on."""

import itertools
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

from verifier.services.state_change_feed import Change

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class TaggedCache(Generic[K, V]):
    """An LRU cache of at most `bound` values; a change invalidates all that rest on its subject.

    `rests_on` returns the hashes of a value's subjects. Not thread-safe. Invalidation takes time
    proportional to the values concerned.
    """

    def __init__(self, bound: int, rests_on: Callable[[V], Sequence[int]]) -> None:
        self._bound = bound
        self._rests_on = rests_on
        self._values: OrderedDict[K, V] = OrderedDict()
        # By subject: the key if one value rests on it, as for most, else a set of keys.
        self._resting: dict[int, K | set[K]] = {}

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: K) -> V | None:
        """The value of `key`, which becomes the most recently used."""
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def keep(self, key: K, value: V) -> None:
        """Store `value` under `key`, replacing any earlier value."""
        self._remove(key)
        if len(self._values) >= self._bound:
            self._remove(next(iter(self._values)))
        self._values[key] = value
        for subject in self._rests_on(value):
            there = self._resting.get(subject)
            if there is None:
                self._resting[subject] = key
            elif isinstance(there, set):
                there.add(key)
            elif there != key:
                self._resting[subject] = {there, key}

    def drop(self, change: Change) -> None:
        """Invalidate the values that rest on the changed subject."""
        there = self._resting.get(hash(change))
        if there is None:
            return
        for key in tuple(there) if isinstance(there, set) else (there,):
            self._remove(key)

    def drop_ended(self, ended: Callable[[V], bool], most: int) -> None:
        """Remove up to `most` of the least recently used, stopping at one that has not `ended`."""
        for key, value in tuple(itertools.islice(self._values.items(), most)):
            if not ended(value):
                return
            self._remove(key)

    def clear(self) -> None:
        """Remove all values."""
        self._values.clear()
        self._resting.clear()

    def _remove(self, key: K) -> None:
        value = self._values.pop(key, None)
        if value is None:
            return
        for subject in self._rests_on(value):
            there = self._resting.get(subject)
            if isinstance(there, set):
                there.discard(key)
                if not there:
                    del self._resting[subject]
            elif there == key:
                del self._resting[subject]
