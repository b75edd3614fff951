"""Where libfaketime is, which gives one process another clock; for tests marked `faketime`."""

from pathlib import Path

LIBRARY = next(
    (str(found) for found in sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))), ""
)
