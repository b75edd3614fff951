"""The S3 store on a real S3 API with Object Lock, and on servers that fail, leak or never end."""

import base64
import contextlib
import logging
import signal
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from botocore.exceptions import ClientError

from agentauth.protocol.errors import InvalidRequestError, TemporarilyUnavailableError
from audit.archive.archive_format import ArchiveError, StoredObject
from audit.archive.segment_reading import download
from audit.stores import CHUNK_BYTES, MAX_OBJECT_BYTES, Digest, ImmutableError, Store, digest_of, s3
from audit.stores.store_factory import store_at
from audit.tests.conftest import SECRETS, Bucket, new_bucket
from tests.fault_proxy import FaultProxy, fault_proxy
from tests.http_server import Quiet, serving

KEY = "objects/0a1b.lines.gz"
BODY = bytes(range(256)) * 8_192


def refused(call: Any, **arguments: Any) -> str:
    with pytest.raises(ClientError) as error:
        call(**arguments)
    return str(error.value.response["Error"]["Code"])


@pytest.fixture
def put(bucket: Bucket) -> dict[str, str]:
    """An object that the store wrote, in the raw client's terms."""
    bucket.store.put_once(KEY, b"first")
    there = {"Bucket": bucket.name, "Key": f"log/{KEY}"}
    return there | {"VersionId": bucket.client.head_object(**there)["VersionId"]}


def test_AU_31_AU_32_every_object_is_locked_for_as_long_as_was_asked(
    bucket: Bucket, put: dict[str, str]
) -> None:
    found = bucket.client.get_object_retention(**put)["Retention"]
    assert found["Mode"] == "COMPLIANCE"
    assert (
        timedelta(minutes=-5)
        < found["RetainUntilDate"] - datetime.now(UTC) - timedelta(days=30)
        <= timedelta()
    )
    held = bucket.client.head_object(**put, ChecksumMode="ENABLED")["ChecksumSHA256"]
    assert base64.b64decode(held) == digest_of(b"first")


def test_AU_32_what_was_written_can_be_neither_deleted_nor_unlocked(
    bucket: Bucket, put: dict[str, str]
) -> None:
    client, later = bucket.client, datetime.now(UTC) + timedelta(days=1)
    assert refused(client.delete_object, **put) == "AccessDenied"
    assert refused(client.delete_object, **put, BypassGovernanceRetention=True) == "AccessDenied"
    for retention in (
        {"Mode": "COMPLIANCE", "RetainUntilDate": later},
        {"Mode": "GOVERNANCE", "RetainUntilDate": later + timedelta(days=90)},
        {},
    ):
        call = {"Retention": retention, "BypassGovernanceRetention": True}
        assert refused(client.put_object_retention, **put, **call) in {
            "AccessDenied",
            "MalformedXML",
        }
    assert refused(client.delete_bucket, Bucket=bucket.name) == "BucketNotEmpty"
    assert bucket.store.get(KEY) == b"first"


def test_AU_32_what_is_laid_over_an_object_hides_nothing(
    bucket: Bucket, put: dict[str, str]
) -> None:
    client, there = bucket.client, {"Bucket": bucket.name, "Key": put["Key"]}
    assert (
        refused(client.put_object, **there, Body=b"second", IfNoneMatch="*") == "PreconditionFailed"
    )
    # Anyone with the credentials can add a version, but the first one counts.
    client.put_object(**there, Body=b"second")
    assert client.get_object(**there)["Body"].read() == b"second"
    assert bucket.store.get(KEY) == b"first"
    bucket.store.put_once(KEY, b"first")
    with pytest.raises(ImmutableError):
        bucket.store.put_once(KEY, b"second")
    # A delete marker removes nothing either.
    client.delete_object(**there)
    assert refused(client.get_object, **there) == "NoSuchKey"
    assert (bucket.store.get(KEY), list(bucket.store.keys())) == (b"first", [KEY])
    bucket.store.put_once(KEY, b"first")
    assert (bucket.store.get(KEY), list(bucket.store.keys())) == (b"first", [KEY])


def test_an_object_that_was_put_there_without_a_lock_is_not_taken_for_ours(bucket: Bucket) -> None:
    bucket.client.put_object(Bucket=bucket.name, Key=f"log/{KEY}", Body=b"first")
    with pytest.raises(ImmutableError, match="without a lock"):
        bucket.store.put_once(KEY, b"first")


def test_a_bucket_without_object_lock_is_refused_until_it_has_it(bucket: Bucket) -> None:
    plain = new_bucket(bucket.url, locked=False)
    for _ in range(2):
        with pytest.raises(ImmutableError, match=f"{plain.name} has no Object Lock"):
            plain.store.put_once(KEY, b"first")
    assert list(plain.store.keys()) == []
    gone = store_at(f"s3://no-such-bucket/p?endpoint={bucket.url}&region=us-east-1")
    for call in (
        lambda: gone.put_once(KEY, b"1"),
        lambda: gone.get(KEY),
        lambda: list(gone.keys()),
    ):
        with pytest.raises(TemporarilyUnavailableError, match="NoSuchBucket"):
            call()


def test_AU_31_object_that_another_process_still_writes_is_no_conflict(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server refused ours for the other's sake, but does not list the other yet."""
    bucket.store.put_once("objects/a", b"first")
    with monkeypatch.context() as patch:
        patch.setattr(s3.S3Store, "_fetch", lambda *_: None)
        with pytest.raises(TemporarilyUnavailableError, match="is just being written"):
            bucket.store.put_once("objects/a", b"first")
    bucket.store.put_once("objects/a", b"first")


def test_stores_of_one_bucket_keep_apart(bucket: Bucket) -> None:
    other = store_at(f"s3://{bucket.name}/log2?endpoint={bucket.url}&region=us-east-1")
    whole = store_at(f"s3://{bucket.name}?endpoint={bucket.url}&region=us-east-1")
    bucket.store.put_once("a", b"1")
    other.put_once("a", b"2")
    assert (bucket.store.get("a"), other.get("a"), whole.get("log2/a")) == (b"1", b"2", b"2")
    assert (list(bucket.store.keys()), list(whole.keys())) == (["a"], ["log/a", "log2/a"])


def test_many_keys_come_page_by_page(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [f"tile/{number:03}" for number in range(23)]
    for key in keys:
        bucket.store.put_once(key, b"1")
    client: Any = bucket.store._client  # type: ignore[attr-defined]
    # A server may choose its page size.
    client.meta.events.register(
        "provide-client-params.s3.ListObjectVersions", lambda params, **_: params | {"MaxKeys": 4}
    )
    assert list(bucket.store.keys("tile/")) == keys
    assert list(bucket.store.keys("tile/", "tile/009")) == keys[10:]
    assert bucket.store.get("tile/022") == b"1"


# A server that fails


@pytest.fixture
def proxied(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Store, FaultProxy]]:
    """The bucket's store behind a proxy that injects faults."""
    monkeypatch.setattr(s3, "READ_SECONDS", 1)
    monkeypatch.setattr(s3, "ATTEMPTS", 1)
    with fault_proxy(int(bucket.url.rpartition(":")[2])) as proxy:
        uri = f"s3://{bucket.name}/log?endpoint=http://127.0.0.1:{proxy.port}&region=us-east-1&lock_days=30"
        store = store_at(uri)
        assert store.get("absent") is None
        yield store, proxy


def test_AU_12_put_stored_but_reported_as_failed_can_be_retried(
    bucket: Bucket, proxied: tuple[Store, FaultProxy]
) -> None:
    store, proxy = proxied
    store.put_once("warm", b"")
    proxy.mode = "noreply"
    with pytest.raises(TemporarilyUnavailableError, match="ReadTimeout"):
        store.put_once(KEY, BODY)
    proxy.cut()
    # It was stored all along.
    assert bucket.store.fetch(KEY, Digest())
    store.put_once(KEY, BODY)
    with pytest.raises(ImmutableError):
        store.put_once(KEY, BODY[:-1])


def test_AU_12_so_it_does_when_the_library_repeats_it(
    proxied: tuple[Store, FaultProxy], bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, proxy = proxied
    monkeypatch.setattr(s3, "ATTEMPTS", 2)
    store = store_at(
        f"s3://{bucket.name}/log?endpoint=http://127.0.0.1:{proxy.port}&region=us-east-1"
    )
    store.put_once("warm", b"")
    client: Any = store._client  # type: ignore[attr-defined]
    client.meta.events.register("needs-retry.s3.PutObject", lambda **_: proxy.cut())
    proxy.mode = "noreply"
    store.put_once(KEY, BODY)
    assert (
        bucket.client.list_object_versions(Bucket=bucket.name, Prefix=f"log/{KEY}")["Versions"][1:]
        == []
    )


@pytest.mark.parametrize("mode", ["reset", "blackhole", "half"])
def test_AU_31_interrupted_upload_leaves_nothing_and_can_be_retried(
    bucket: Bucket, proxied: tuple[Store, FaultProxy], mode: str, tmp_path: Path
) -> None:
    store, proxy = proxied
    store.put_once("warm", b"")
    path = tmp_path / "big"
    path.write_bytes(BODY)
    proxy.half_bytes = len(BODY) // 2
    proxy.mode = mode
    with pytest.raises(TemporarilyUnavailableError, match="The log's store s3://"):
        store.put_once(KEY, path)
    assert not bucket.store.fetch(KEY, Digest())
    proxy.cut()
    store.put_once(KEY, path)
    into = Digest()
    assert bucket.store.fetch(KEY, into)
    assert into.sha256() == digest_of(BODY)


def test_AU_31_server_refuses_bytes_that_do_not_match_their_digest(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "digest_of", lambda _data: bytes(32))
    with pytest.raises(TemporarilyUnavailableError, match="BadDigest"):
        bucket.store.put_once(KEY, b"first")
    assert bucket.store.get(KEY) is None


# A server that leaks


class _Teller(Quiet):
    """Echoes all it was sent in its error."""

    def do_GET(self) -> None:
        said = (
            f"<Error><Code>SignatureDoesNotMatch</Code><Message>{self.headers} "
            f"{SECRETS}</Message></Error>"
        ).encode()
        self.say(403, said)

    do_PUT = do_GET  # noqa: N815


@contextmanager
def answering(handler: type[Quiet]) -> Iterator[Store]:
    """The store of a server with this handler."""
    with serving(handler) as url:
        yield store_at(f"s3://bucket/p?endpoint={url}&region=us-east-1")


def test_AU_31_no_error_and_no_log_line_holds_credentials(
    credentials: None, caplog: pytest.LogCaptureFixture
) -> None:
    with answering(_Teller) as store, caplog.at_level(logging.DEBUG):
        for call in (
            lambda: store.put_once(KEY, b"1"),
            lambda: store.get(KEY),
            lambda: list(store.keys()),
        ):
            with pytest.raises(TemporarilyUnavailableError) as raised:
                call()
            told = "".join(traceback.format_exception(raised.value)) + repr(store) + caplog.text
            assert "SignatureDoesNotMatch" in str(raised.value)
            assert not [secret for secret in [*SECRETS, "Signature="] if secret in told]


# A server that never ends


class _Endless(Quiet):
    """Has one version of every key, and sends its `piece` without end, `pause` seconds apart."""

    piece, pause = b"x" * 65_536, 0.0

    def do_GET(self) -> None:
        query = self.path.partition("?")[2]
        if "versions" in query:
            key = parse_qs(query)["prefix"][0]
            self.say(
                200,
                f"<ListVersionsResult><IsTruncated>false</IsTruncated><Version><Key>{key}</Key>"
                "<VersionId>1</VersionId></Version></ListVersionsResult>".encode(),
            )
            return
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(OSError):
            while True:
                self.wfile.write(self.piece)
                time.sleep(self.pause)


class _Dripping(_Endless):
    piece, pause = b"x", 0.05


@pytest.fixture
def ends(credentials: None) -> Iterator[None]:
    """Fail a test that would otherwise never end."""

    def late(*_: object) -> None:
        raise AssertionError("it never ends")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_AU_31_an_object_without_end_is_read_up_to_a_bound(
    ends: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "MAX_OBJECT_BYTES", 5 * CHUNK_BYTES)
    with answering(_Endless) as store:
        into = Digest()
        with pytest.raises(ImmutableError, match="larger"):
            store.fetch(KEY, into)
        assert into.length == 5 * CHUNK_BYTES
        with pytest.raises(ImmutableError, match="larger"):
            store.get(KEY)


def test_AU_31_of_an_object_no_more_is_read_than_its_manifest_says(
    ends: None, tmp_path: Path
) -> None:
    wanted, path = StoredObject(KEY, "0" * 64, 2 * CHUNK_BYTES), tmp_path / "copy"
    with (
        answering(_Endless) as store,
        pytest.raises(ArchiveError, match="not what its manifest says") as found,
    ):
        download(store, wanted, path, 7)
    assert (found.value.place, path.stat().st_size) == (7, 2 * CHUNK_BYTES)


@pytest.mark.parametrize(
    ("handler", "said"), [(_Endless, "TimeoutError"), (_Dripping, "ReadTimeoutError")]
)
def test_AU_31_an_object_that_takes_too_long_in_all_is_given_up(
    handler: type[_Endless], said: str, ends: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "FETCH_SECONDS", 0.5)
    monkeypatch.setattr(s3, "MAX_OBJECT_BYTES", 1 << 60)
    with (
        answering(handler) as store,
        pytest.raises(TemporarilyUnavailableError, match=f"refused or failed: .*{said}"),
    ):
        store.fetch(KEY, Digest())


def test_AU_31_so_is_one_whose_next_bytes_are_always_there(
    ends: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No single read times out, so the total time is checked.

    This body never makes the reader wait.
    """

    class Steady:
        def read(self, _most: int) -> bytes:
            return b"x"

        def set_socket_timeout(self, _seconds: float) -> None:
            """Ignored: this body never blocks."""

    monkeypatch.setattr(s3, "FETCH_SECONDS", 0.5)
    with pytest.raises(TimeoutError):
        s3._copy(Steady(), Digest(), KEY)


def test_no_manifest_names_an_object_beyond_the_bound() -> None:
    given = {"key": f"objects/{'0' * 64}.parquet", "sha256": "0" * 64, "bytes": MAX_OBJECT_BYTES}
    assert StoredObject.parse(given, "parquet").bytes == MAX_OBJECT_BYTES
    with pytest.raises(InvalidRequestError, match="bytes"):
        StoredObject.parse(given | {"bytes": MAX_OBJECT_BYTES + 1}, "parquet")


def test_without_credentials_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "absent"))
    store = store_at("s3://no-credentials/p?endpoint=http://127.0.0.1:9&region=us-east-1")
    with pytest.raises(TemporarilyUnavailableError, match="NoCredentialsError"):
        store.get(KEY)
