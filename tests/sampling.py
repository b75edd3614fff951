"""Long tables of cases: CI runs some of them, `make long` the others."""

from collections.abc import Iterable
from typing import Any

import pytest


def one_in(number: int, cases: Iterable[Any]) -> list[Any]:
    """These sets of parameters; all but the first of each `number` are marked `long`."""
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)),
            marks=[pytest.mark.long] if place % number else [],
        )
        for place, case in enumerate(cases)
    ]
