"""Write-once stores: one contract for both kinds, then what each must withstand."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from agentauth.protocol.errors import InvalidRequestError, TemporarilyUnavailableError
from audit.stores import MAX_SMALL_BYTES, Digest, ImmutableError, Store, digest_of
from audit.stores.folder import DRAFT_SECONDS, FolderStore
from audit.stores.store_factory import store_at
from audit.stores.store_uri_checks import store_error
from audit.tests.conftest import Bucket

KEY = "objects/0a1b.lines.gz"
BIG = os.urandom(3 * MAX_SMALL_BYTES + 1)


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return store_at(f"file:{tmp_path / 'store'}")
    bucket: Bucket = request.getfixturevalue("bucket")
    return bucket.store


def test_what_was_put_is_there(store: Store) -> None:
    assert store.get(KEY) is None
    store.put_once(KEY, b"first")
    store.put_once("empty", b"")
    assert (store.get(KEY), store.get("empty"), store.get("objects")) == (b"first", b"", None)


def test_AU_31_the_same_bytes_again_change_nothing_and_others_are_refused(store: Store) -> None:
    store.put_once(KEY, b"first")
    store.put_once(KEY, b"first")
    for other in (b"", b"First", b"first "):
        with pytest.raises(ImmutableError, match=KEY):
            store.put_once(KEY, other)
    assert store.get(KEY) == b"first"


def test_files_pass_in_pieces(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "big"
    path.write_bytes(BIG)
    store.put_once(KEY, path)
    store.put_once(KEY, path)
    into = Digest()
    assert store.fetch(KEY, into)
    assert (into.sha256(), into.length) == (digest_of(BIG), len(BIG))
    assert not store.fetch("absent", into)
    # A larger object under a key for small ones is refused, also if another client put it there.
    with pytest.raises(ImmutableError, match="larger"):
        store.get(KEY)
    path.write_bytes(BIG[:-1])
    with pytest.raises(ImmutableError):
        store.put_once(KEY, path)


def test_keys_come_in_the_order_of_their_bytes(store: Store) -> None:
    assert list(store.keys()) == list(store.keys("tile/0/")) == []
    keys = ["a", "tile/0/001.p/5", "tile/0/001", "tile/0/x001/000", "tile/1/000", "z"]
    for key in keys:
        store.put_once(key, key.encode())
    assert list(store.keys()) == sorted(keys)
    assert list(store.keys("tile/0/")) == ["tile/0/001", "tile/0/001.p/5", "tile/0/x001/000"]
    assert list(store.keys("tile/0")) == list(store.keys("tile/0/"))
    assert list(store.keys("", "tile/0/001")) == [
        "tile/0/001.p/5",
        "tile/0/x001/000",
        "tile/1/000",
        "z",
    ]
    assert list(store.keys("tile/", "tile/0/001.p/5")) == ["tile/0/x001/000", "tile/1/000"]
    assert list(store.keys("b", "a")) == []


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/a",
        "a/",
        "a//b",
        "..",
        "a/../b",
        "a/.b",
        "A",
        "a b",
        "a\n",
        "ä",
        "a\\b",
        "x" * 129,
        "/".join("a" * 17),
    ],
)
def test_a_key_is_a_plain_relative_path(store: Store, key: str) -> None:
    for call in (
        store.get,
        lambda key: store.put_once(key, b""),
        lambda key: store.fetch(key, Digest()),
    ):
        with pytest.raises(ValueError, match="not a key"):
            call(key)


@pytest.mark.parametrize("same", [True, False])
def test_of_writers_at_once_one_is_first_and_all_know_it(store: Store, same: bool) -> None:
    start, outcomes = threading.Barrier(6), []

    def write(number: int) -> None:
        start.wait()
        try:
            store.put_once(KEY, b"same" if same else b"%d" % number)
            outcomes.append(number)
        except (ImmutableError, TemporarilyUnavailableError):
            outcomes.append(-1)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [number for number in outcomes if number >= 0]
    if same:
        assert winners
        store.put_once(KEY, b"same")
    else:
        assert [b"%d" % number for number in winners] == [store.get(KEY)]


@pytest.mark.parametrize(
    "uri",
    [
        "", "file:", "ftp://a/b", "s3:bucket", "s3:///p", "s3://b", "s3://UPPER/p",
        "s3://key:secret@bucket/p", "s3://bucket/../p", "s3://bucket/p#f",
        "s3://bucket/p?endpoint=http://example.org",
        "s3://bucket/p?endpoint=https://k:s@example.org",
        "s3://bucket/p?endpoint=https://example.org/path",
        "s3://bucket/p?endpoint=https://example.org%3Fx=1", "s3://bucket/p?lock_days=0",
        "s3://bucket/p?lock_days=x", "s3://bucket/p?lock_days=40000", "s3://bucket/p?secret=x",
        "s3://bucket/p?region=a&region=b", "s3://bucket/P",
    ],
)  # fmt: skip
def test_an_address_of_another_form_is_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        store_at(uri)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("file:/srv/log", ""),
        ("file:", "must be file:<path> or s3://"),
        ("/srv/log", "must be file:<path> or s3://"),
        ("https://log.example", "must be file:<path> or s3://"),
        ("s3://log-bucket/log?lock_days=30", ""),
        ("s3://log-bucket/log?lock_days=0", "without credentials"),
        ("s3://key:secret@log-bucket", "without credentials"),
    ],
)
def test_check_at_startup_says_what_is_wrong_with_a_store(uri: str, said: str) -> None:
    error = store_error(uri)
    assert said in error
    assert bool(error) is bool(said)
    assert "secret" not in error


def test_a_store_says_where_it_is_and_no_more(tmp_path: Path) -> None:
    assert repr(store_at(f"file:{tmp_path}")) == f"file:{tmp_path}"
    assert (
        repr(store_at("s3://my-bucket/a/b/?endpoint=https://s3.example&lock_days=9"))
        == "s3://my-bucket/a/b/"
    )
    assert repr(store_at("s3://my-bucket")) == "s3://my-bucket/"
    assert store_at("s3://my-bucket") is store_at("s3://my-bucket")


def test_folder_store_imports_no_s3_library(tmp_path: Path) -> None:
    program = (
        "import sys; from audit.stores.store_factory import store_at;"
        "store_at(sys.argv[1]).put_once('a', b'1');"
        "assert not {'boto3', 'botocore'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program, f"file:{tmp_path}"], check=True)


# The folder store


@pytest.fixture
def folder(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


def failing(number: int, calls: list[int], real: Any) -> Any:
    def call(*given: Any) -> Any:
        calls.append(1)
        if len(calls) == number:
            raise OSError(28, "No space left on device")
        return real(*given)

    return call


def test_a_file_of_the_folder_is_read_only_and_no_draft_stays(
    folder: FolderStore, tmp_path: Path
) -> None:
    folder.put_once(KEY, b"first")
    assert (tmp_path / "store" / KEY).stat().st_mode & 0o777 == 0o444
    with pytest.raises(ImmutableError):
        folder.put_once(KEY, b"second")
    assert list((tmp_path / "store/.drafts").iterdir()) == []
    assert list(folder.keys()) == [KEY]


def test_next_put_removes_only_what_a_killed_writer_left(
    folder: FolderStore, tmp_path: Path
) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from audit.stores.folder import "
        "FolderStore;"
        "os.link = lambda *_: os.kill(os.getpid(), signal.SIGKILL);"
        "FolderStore(Path(sys.argv[1])).put_once('a', b'half')"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(tmp_path / "store")], check=False)
    assert ended.returncode == -signal.SIGKILL
    drafts = tmp_path / "store/.drafts"
    [left] = drafts.iterdir()
    # It is too new to delete: its writer may still be running.
    folder.put_once("b", b"1")
    assert list(drafts.iterdir()) == [left]
    long_ago = left.stat().st_mtime - DRAFT_SECONDS - 60
    for old in (left, tmp_path / "store/b"):
        os.utime(old, (long_ago, long_ago))
    folder.put_once("c", b"2")
    assert list(drafts.iterdir()) == []
    folder.put_once("a", b"whole")
    assert [folder.get(key) for key in "abc"] == [b"whole", b"1", b"2"]


@pytest.mark.parametrize("call", ["fsync", "link", "fchmod"])
@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_AU_12_put_that_fails_anywhere_in_the_folder_can_be_retried(
    folder: FolderStore, call: str, number: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing(number, calls, getattr(os, call)))
        with contextlib.suppress(TemporarilyUnavailableError):
            folder.put_once(KEY, b"first")
            assert len(calls) < number
    # Absent or complete: a reader never sees part of it.
    assert folder.get(KEY) in {None, b"first"}
    assert set(folder.keys()) <= {KEY}
    folder.put_once(KEY, b"first")
    assert folder.get(KEY) == b"first"
    with pytest.raises(ImmutableError):
        folder.put_once(KEY, b"second")


def test_every_put_reaches_the_disk_with_its_folders(
    folder: FolderStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    synced: list[str] = []

    def note(descriptor: int) -> None:
        synced.append(
            Path(f"/proc/self/fd/{descriptor}").readlink().relative_to(tmp_path).as_posix()
        )

    monkeypatch.setattr(os, "fsync", note)
    folder.put_once("a/b", b"1")
    assert [name for name in synced if ".drafts" not in name] == [".", "store", "store/a"]
    assert len(synced) == 4
    # An earlier writer may have died between the link and this sync.
    folder.put_once("a/b", b"1")
    assert synced[-1] == "store/a"


def test_a_file_in_place_of_a_folder_is_not_an_empty_store(folder: FolderStore) -> None:
    """Else a damaged store would look as if the log had never been copied."""
    folder.put_once("checkpoints", b"")
    with pytest.raises(TemporarilyUnavailableError):
        list(folder.keys("checkpoints/"))
    assert list(folder.keys("segments/")) == []


def test_a_folder_that_cannot_be_used_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = FolderStore(tmp_path / "file")
    with pytest.raises(
        TemporarilyUnavailableError, match=r"cannot be used: (Not a directory|File exists)"
    ):
        store.put_once(KEY, b"first")
