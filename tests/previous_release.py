"""The previous version, from this clone's history: the commit named in tests/PREVIOUS_RELEASE."""

import subprocess
import tarfile
from io import BytesIO
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMMIT = (ROOT / "tests/PREVIOUS_RELEASE").read_text().strip()


def is_here() -> bool:
    """Whether this clone contains it; a shallow clone or an unpacked archive does not."""
    asked = ["git", "cat-file", "-e", f"{COMMIT}^{{commit}}"]
    return subprocess.run(asked, cwd=ROOT, capture_output=True, check=False).returncode == 0


def file(path: str) -> str:
    """The text of one of its files; empty if it has no such file."""
    told = subprocess.run(
        ["git", "show", f"{COMMIT}:{path}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return told.stdout


def files() -> set[str]:
    """The paths of all its files."""
    listed = ["git", "ls-tree", "-r", "--name-only", COMMIT]
    return set(
        subprocess.run(
            listed, cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.splitlines()
    )


def unpack(directory: Path) -> Path:
    """Unpack all its files into this folder."""
    packed = subprocess.run(
        ["git", "archive", COMMIT], cwd=ROOT, capture_output=True, check=True
    ).stdout
    with tarfile.open(fileobj=BytesIO(packed)) as archive:
        archive.extractall(directory, filter="data")
    return directory
