"""A private S3 and KMS server for tests, in memory, with Object Lock and Ed25519 keys, on loopback.

The program pins other versions of libraries that we use, so it has its own environment inside ours,
made from tests/ministack.txt by the first process that needs it.
"""

import contextlib
import fcntl
import hashlib
import os
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import httpx

from tests.postgres import free_port

LOCK = Path(__file__).with_name("ministack.txt")
START_SECONDS = 30


@contextlib.contextmanager
def server(home: Path) -> Iterator[str]:
    """A running server; yields its URL. It accepts any credentials."""
    port = free_port()
    env = {
        **os.environ,
        "HOME": str(home),
        "BIND_HOST": "127.0.0.1",
        "GATEWAY_PORT": str(port),
        "SERVICES": "s3,kms,sts",
        "IOT_MTLS_ENABLED": "0",
    }
    with (home / "ministack.log").open("wb") as log:
        process = subprocess.Popen([str(installed())], stdout=log, stderr=log, env=env, cwd=home)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(url)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=10)


def client(url: str) -> Any:
    """An S3 client to inspect its objects, with any credentials."""
    session = boto3.session.Session("of-a-test", "of-a-test")
    return session.client("s3", endpoint_url=url, region_name="us-east-1")


def make_bucket(url: str, name: str) -> Any:
    """Create a bucket with Object Lock; returns its client."""
    made = client(url)
    made.create_bucket(Bucket=name, ObjectLockEnabledForBucket=True)
    return made


def installed() -> Path:
    """The program, installed once per content of its lock file; other processes wait meanwhile."""
    folder = Path(sys.prefix) / "ministack" / hashlib.sha256(LOCK.read_bytes()).hexdigest()[:16]
    folder.parent.mkdir(exist_ok=True)
    with (folder.parent / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            venv.create(folder, with_pip=True, clear=True)
            install = [
                "-m",
                "pip",
                "install",
                "-q",
                "--disable-pip-version-check",
                "--require-hashes",
                "-r",
                str(LOCK),
            ]
            subprocess.run([folder / "bin/python", *install], check=True)
            (folder / "complete").touch()
    return folder / "bin/ministack"


def _wait(url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        with contextlib.suppress(httpx.TransportError):
            httpx.get(url, timeout=2)
            return
        if time.monotonic() > deadline:
            raise RuntimeError("ministack did not start")
        time.sleep(0.1)
