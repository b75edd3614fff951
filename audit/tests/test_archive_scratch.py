"""The next archiver deletes what a killed one left in TMPDIR, and nothing in use or not ours."""

import multiprocessing
import os
import signal
import tempfile
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from audit.archive import scratch as scratches
from audit.archive.scratch import PREFIX, scratch


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def left(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def die_inside() -> None:
    with scratch() as folder:
        (folder / "lines.gz").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)


def test_RF_14_leftovers_of_a_killed_process_go_but_used_scratch_stays(place: Path) -> None:
    dying = multiprocessing.get_context("fork").Process(target=die_inside)
    dying.start()
    dying.join()
    assert dying.exitcode == -signal.SIGKILL
    [dead] = left(place)
    with scratch() as one:
        assert dead not in left(place)
        assert one.stat().st_mode & 0o777 == 0o700
        (one / "kept").write_bytes(b"mine")
        with scratch() as other:
            assert left(place) == sorted((one.name, other.name))
            assert (one / "kept").read_bytes() == b"mine"
    assert left(place) == []


def test_cleanup_keeps_anything_but_our_own_scratch_folders(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    (place / f"{PREFIX}link").symlink_to(elsewhere)
    (place / f"{PREFIX}file").write_bytes(b"a file")
    (place / f"{PREFIX}theirs").mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(os, "geteuid", lambda: os.getuid() + 1)
        with scratch():
            pass
    assert left(place) == sorted((f"{PREFIX}file", f"{PREFIX}link", f"{PREFIX}theirs", "elsewhere"))


@pytest.mark.parametrize("is_open", [False, True])
def test_folder_swept_before_it_is_locked_is_replaced(
    place: Path, monkeypatch: pytest.MonkeyPatch, is_open: bool
) -> None:
    open_folder, swept = scratches._open, list[Path]()

    def overtaken(folder: Path) -> int:
        if swept:
            return open_folder(folder)
        swept.append(folder)
        if not is_open:
            folder.rmdir()
            return open_folder(folder)
        held = open_folder(folder)
        folder.rmdir()
        return held

    monkeypatch.setattr(scratches, "_open", overtaken)
    held = open_files()
    with scratch() as folder:
        assert folder.is_dir()
        assert [folder] != swept
    assert open_files() == held
    assert left(place) == []


def test_so_many_are_looked_at_in_one_go(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratches, "_MOST", 2)
    for number in range(5):
        (place / f"{PREFIX}{number}").mkdir()
    for remaining in (3, 1, 0):
        with scratch():
            pass
        assert len(left(place)) == remaining


def use_often(place: str, start: Barrier) -> None:
    tempfile.tempdir = place
    start.wait()
    for number in range(300):
        with scratch() as folder:
            (folder / "mine").write_text(str(number))
            assert (folder / "mine").read_text() == str(number)


def test_many_at_once_take_nothing_from_each_other(place: Path) -> None:
    context = multiprocessing.get_context("fork")
    start = context.Barrier(4)
    users = [context.Process(target=use_often, args=(str(place), start)) for _ in range(4)]
    for user in users:
        user.start()
    for user in users:
        user.join()
    assert [user.exitcode for user in users] == [0] * 4
    assert left(place) == []
