"""The paths that the lean endpoint serves; other modules and the URLconf take them from here."""

from typing import Final

VERIFY: Final = "/v1/verify"
BATCH: Final = "/v1/verify/batch"
INTROSPECT: Final = "/v1/introspect"
LEAN_PATHS: Final = frozenset({VERIFY, BATCH, INTROSPECT})
