"""A private nginx before our servers, on a free loopback port, with or without TLS, as any user.

`documented` is the configuration printed in docs/install.md: the tests run what operators copy.
"""

import contextlib
import os
import re
import shutil
import signal
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.certificates import self_signed
from tests.postgres import free_port
from tests.waiting import until_listening

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_SECONDS = 120
# What surrounds a site's configuration; one worker process, so that there is one connection pool.
MAIN = """
daemon off;
worker_processes 1;
{user}
pid nginx.pid;
error_log error.log warn;
events {{ worker_connections 1024; }}
http {{
    log_format asked '$status $upstream_status $request';
    access_log access.log asked;
    client_body_temp_path body; proxy_temp_path proxy;
    fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
{site}
}}
"""
# What the site says in our tests in place of what the page prints.
HERE = {
    "server_name registry.example.com;": "server_name localhost;",
    "/var/log/nginx/access.log combined": "access.log asked",
}
_LISTEN = re.compile(r"listen +443 +ssl;")
_CERTIFICATE = re.compile(r"^ *ssl_certificate(?:_key)? .*\n", re.MULTILINE)


def program() -> str | None:
    """Where nginx is; None if it is not installed. Its folder need not be on a user's path."""
    return shutil.which(
        "nginx", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin"
    )


@dataclass
class Nginx:
    """One running nginx. `certificate` is the file that clients trust, None without TLS."""

    directory: Path
    port: int
    certificate: Path | None
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        """Its address as `localhost`, which its certificate names besides 127.0.0.1."""
        return f"{'https' if self.certificate else 'http'}://localhost:{self.port}"

    @property
    def trust(self) -> ssl.SSLContext | bool:
        """The `verify` argument for httpx."""
        return ssl.create_default_context(cafile=self.certificate) if self.certificate else True

    @property
    def asked(self) -> list[str]:
        """A line per request, complete once nginx stopped: status, upstreams' statuses, the
        request.
        """
        return (self.directory / "access.log").read_text().splitlines()

    @property
    def errors(self) -> str:
        """Warnings and errors, including each upstream that closed the connection on a request."""
        return (self.directory / "error.log").read_text()


def documented(*, web: int, verifier: int | None = None) -> str:
    """The site of docs/install.md, before servers on these ports; `verifier` defaults to `web`."""
    page = (ROOT / "docs/install.md").read_text()
    [site] = re.findall(r"/agentauth\.conf <<'EOF'\n(.*?)^EOF$", page, re.MULTILINE | re.DOTALL)
    ports = {"8000": web, "8001": verifier or web}
    made, count = re.subn(
        r"(?<=server 127\.0\.0\.1:)(800[01])(?=;)", lambda found: str(ports[found[1]]), site
    )
    assert count == len(ports), "the page names other upstreams"
    for printed, here in HERE.items():
        assert printed in made, f"the page does not say {printed} any more"
        made = made.replace(printed, here)
    return made


@contextlib.contextmanager
def nginx(site: str, directory: Path, *, port: int = 0, tls: bool = False) -> Iterator[Nginx]:
    """A running nginx with `site`; instead of `443 ssl` it listens on `port` of 127.0.0.1 (0: a
    free one).

    Its files are in `directory`. With `tls` it uses its own certificate, otherwise plain http.
    Raises RuntimeError if it does not start.
    """
    directory.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    certificate = self_signed(directory) if tls else None
    listen = f"listen 127.0.0.1:{port}{' ssl' if tls else ''};"
    made, count = _LISTEN.subn(listen, _CERTIFICATE.sub("", site))
    assert count == 1, "the site does not listen at `443 ssl` once"
    if tls:
        made = "ssl_certificate proxy.crt; ssl_certificate_key proxy.key;\n" + made
    # As root its workers would run as `nobody`, who cannot write into our directory.
    user = "user root;" if os.geteuid() == 0 else ""
    (directory / "nginx.conf").write_text(MAIN.format(user=user, site=made))
    found = program()
    if found is None:
        raise RuntimeError("nginx is not installed")
    command = [found, "-p", str(directory), "-c", "nginx.conf", "-e", "error.log"]
    with (directory / "stderr.log").open("wb") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
    try:
        until_listening(port, process, directory / "stderr.log")
        yield Nginx(directory, port, certificate, process)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE_SECONDS)
