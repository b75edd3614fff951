"""A private S3 and KMS server for tests, in memory, with Object Lock and Ed25519 keys, on loopback.

The program has an environment of its own, made from tests/ministack.txt.
"""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3

from tests import pinned
from tests.postgres import free_port
from tests.waiting import until_listening

LOCK = Path(__file__).with_name("ministack.txt")


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
        until_listening(port, process, home / "ministack.log")
        yield url
    finally:
        process.terminate()
        process.wait(timeout=60)


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
    """The program."""
    return pinned.environment("ministack", LOCK) / "bin/ministack"
