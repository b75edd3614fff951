"""A process that dies at a fault point; the death is an exception here."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import pytest


@contextmanager
def dies_at(place: str, module: ModuleType) -> Iterator[None]:
    """Die at this fault point of the module; fail if the block does not get there."""

    class DeathError(Exception):
        pass

    def die(name: str) -> None:
        if name == place:
            raise DeathError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "fault_point", die)
        with pytest.raises(DeathError):
            yield
