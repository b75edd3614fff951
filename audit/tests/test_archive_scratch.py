"""The next archiver deletes what a killed one left in TMPDIR, but no folder that is in use or that
it did not make.
"""

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


def names_in(place: Path) -> list[str]:
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
    [dead] = names_in(place)
    with scratch() as one:
        assert dead not in names_in(place)
        assert one.stat().st_mode & 0o777 == 0o700
        (one / "kept").write_bytes(b"mine")
        with scratch() as other:
            assert names_in(place) == sorted((one.name, other.name))
            assert (one / "kept").read_bytes() == b"mine"
    assert names_in(place) == []


def test_cleanup_keeps_another_users_folder(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / f"{PREFIX}theirs").mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(os, "geteuid", lambda: os.getuid() + 1)
        with scratch():
            pass
    assert names_in(place) == [f"{PREFIX}theirs"]


def test_cleanup_follows_no_link_and_deletes_no_file(place: Path) -> None:
    elsewhere, link, file = place / "elsewhere", place / f"{PREFIX}link", place / f"{PREFIX}file"
    elsewhere.mkdir()
    (elsewhere / "kept").write_bytes(b"not ours")
    link.symlink_to(elsewhere)
    file.write_bytes(b"a file")
    with scratch():
        pass
    assert names_in(place) == sorted((file.name, link.name, "elsewhere"))
    assert names_in(elsewhere) == ["kept"]
    # `shutil.rmtree` would refuse both too: neither may even be opened and locked.
    for path in (link, file):
        with pytest.raises(OSError):
            scratches._open(path)


@pytest.mark.parametrize("after_opening", [False, True])
def test_folder_swept_before_it_is_locked_is_replaced(
    place: Path, monkeypatch: pytest.MonkeyPatch, after_opening: bool
) -> None:
    open_folder, swept = scratches._open, list[Path]()

    def open_after_a_sweep(folder: Path) -> int:
        if swept:
            return open_folder(folder)
        swept.append(folder)
        if not after_opening:
            folder.rmdir()
            return open_folder(folder)
        descriptor = open_folder(folder)
        folder.rmdir()
        return descriptor

    monkeypatch.setattr(scratches, "_open", open_after_a_sweep)
    open_before = open_files()
    with scratch() as folder:
        assert folder.is_dir()
        [first] = swept
        assert folder != first
    assert open_files() == open_before
    assert names_in(place) == []


def test_one_sweep_looks_at_a_limited_number_of_folders(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratches, "_MAX_FOLDERS_PER_SWEEP", 2)
    for number in range(5):
        (place / f"{PREFIX}{number}").mkdir()
    for remaining in (3, 1, 0):
        with scratch():
            pass
        assert len(names_in(place)) == remaining


def use_often(place: str, start: Barrier) -> None:
    tempfile.tempdir = place
    start.wait()
    for number in range(300):
        with scratch() as folder:
            (folder / "mine").write_text(str(number))
            assert (folder / "mine").read_text() == str(number)


def test_concurrent_users_keep_their_folders(place: Path) -> None:
    context = multiprocessing.get_context("fork")
    start = context.Barrier(4)
    users = [context.Process(target=use_often, args=(str(place), start)) for _ in range(4)]
    for user in users:
        user.start()
    for user in users:
        user.join()
    assert [user.exitcode for user in users] == [0] * 4
    assert names_in(place) == []
