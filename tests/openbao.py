"""A private OpenBao server for tests: the Vault API with Transit, in memory, on loopback."""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hvac
import requests

from tests.postgres import free_port
from tests.waiting import until

ROOT = Path(__file__).resolve().parent.parent
ROOT_TOKEN = "root-token-of-a-test-server"
AUTHORITY = "vault-ca.pem"


def policies(page: str) -> list[str]:
    """The policies in a page of the docs or a configuration file, in order."""
    return re.findall(r'(?:^path ".*\n)+', (ROOT / page).read_text(), re.MULTILINE)


def login_role(page: str) -> dict[str, str]:
    """The options of the registry's login, as a page or configuration file prints them."""
    text = (ROOT / page).read_text()
    [told] = re.findall(
        r"auth/(?:approle|kubernetes)/role/agentauth (.+)$"
        r'|auth/approle/role/agentauth"\n +data += \{((?:.|\n)+?)\}$',
        text,
        re.MULTILINE,
    )
    return dict(re.findall(r'(\w+) *= *"?([^\s",]+)', told[0] or told[1]))


@contextlib.contextmanager
def server(home: Path, *, tls: bool = False) -> Iterator[str]:
    """A running server; yields its URL. `ROOT_TOKEN` has all rights; Transit is mounted at
    `transit`.

    With `tls`, `home / AUTHORITY` is the certificate that signed its own.
    """
    port = free_port()
    command = [
        str(Path(sys.executable).parent / "bao"),
        "server",
        *(["-dev-tls", f"-dev-tls-cert-dir={home}"] if tls else ["-dev"]),
        "-dev-no-store-token",
        f"-dev-root-token-id={ROOT_TOKEN}",
        f"-dev-listen-address=127.0.0.1:{port}",
    ]
    with (home / "openbao.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, "HOME": str(home)}
        )
    try:
        url = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
        verify = str(home / AUTHORITY) if tls else True
        until(lambda: _is_well(url, verify), "OpenBao did not start")
        hvac.Client(url=url, token=ROOT_TOKEN, verify=verify).sys.enable_secrets_engine("transit")
        yield url
    finally:
        process.terminate()
        process.wait(timeout=60)


def _is_well(url: str, verify: str | bool) -> bool:
    # OSError: the certificate is not written yet.
    with contextlib.suppress(requests.RequestException, OSError):
        return requests.get(f"{url}/v1/sys/health", timeout=2, verify=verify).ok
    return False
