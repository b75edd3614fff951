"""A file system of its own that can be full or slow, on a loop device. Needs root."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

# Writes of the device that may pass each second while it is slow. A commit needs two or three.
SLOW_WRITES = 20
_THROTTLE = Path("/sys/fs/cgroup/blkio/blkio.throttle.write_iops_device")


class Disk:
    """Mounted at `path`. Its image is in TMPDIR, so it is fast unless `slow` was called."""

    def __init__(self, megabytes: int) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="agentauth-disk-"))
        self._image = self.path.with_suffix(".img")
        with self._image.open("wb") as image:
            image.truncate(megabytes * 2**20)
        self._device = _run("losetup", "--find", "--show", str(self._image))
        # No reserved blocks: root's processes must find it as full as others do.
        _run("mkfs.ext4", "-q", "-m", "0", self._device)
        _run("mount", self._device, str(self.path))
        self.path.chmod(0o755)

    @property
    def can_be_slow(self) -> bool:
        return os.access(_THROTTLE, os.W_OK)

    def slow(self) -> None:
        self._limit(SLOW_WRITES)

    def fast(self) -> None:
        self._limit(0)

    def fill(self) -> None:
        """Leave no free block."""
        with (self.path / "ballast").open("wb") as ballast:
            free = shutil.disk_usage(self.path).free
            while free >= os.statvfs(self.path).f_frsize:
                try:
                    os.posix_fallocate(ballast.fileno(), ballast.seek(0, 2), free)
                    ballast.seek(0, 2)
                    free = shutil.disk_usage(self.path).free
                except OSError:
                    free //= 2

    def empty(self) -> None:
        (self.path / "ballast").unlink(missing_ok=True)

    def remove(self) -> None:
        self.fast()
        _run("umount", "-l", str(self.path))
        _run("losetup", "-d", self._device)
        self._image.unlink()
        self.path.rmdir()

    def _limit(self, writes: int) -> None:
        if self.can_be_slow:
            number = Path(f"/sys/block/{Path(self._device).name}/dev").read_text().strip()
            _THROTTLE.write_text(f"{number} {writes}\n")


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
