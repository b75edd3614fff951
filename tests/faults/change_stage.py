"""Two hosts, each with another version, set up as docs/operations.md describes for several hosts.

Service providers ask through nginx with TLS. Web servers reach PostgreSQL through PgBouncer; the
verifiers and the jobs name both its servers. Redis is watched by Sentinels.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx

from agentauth.protocol.dpop import make_proof
from agentauth.sdk import registry_http
from tests import nginx, pgbouncer, postgres, redis_servers
from tests.actors import Scene, payment_of
from tests.certificates import self_signed
from tests.faults import versions
from tests.faults.cast import token_of
from tests.faults.clients import READ, question_of
from tests.faults.redis_failover import follow, kill_the_primary
from tests.flows.test_pgbouncer import ALTER_ROLE, SETTINGS
from tests.waiting import until

# How many renewed certificates are made. Clients trust all of them from the start.
RENEWALS = 40
# Each probe asks this often, so a window of 503 is measured this exactly.
PROBE_SECONDS = 0.2
PROBE_PATIENCE_SECONDS = 10
# Of the 900 s that a token is valid: after an outage of up to 10 minutes, the probe still has a
# valid token.
RENEW_AFTER_SECONDS = 300
PAYMENT = payment_of("0.01")


@dataclass(frozen=True)
class ProbeKind:
    """What a probe asks for, and where."""

    name: str
    pays: bool = False
    at_web: bool = False
    wants_token: bool = False


PROBES = [
    ProbeKind("a light decision"),
    ProbeKind("a payment", pays=True),
    ProbeKind("a payment at a web server", pays=True, at_web=True),
    ProbeKind("a token", at_web=True, wants_token=True),
]


class Host(versions.Release):
    """A release whose web server uses the pooler, and whose other processes connect directly."""

    def __init__(self, name: str, root: Path, stage: "ChangeStage") -> None:
        super().__init__(name, root, stage)
        store = {"AUDIT_STORE": f"file:{stage.directory / 'outside'}"}
        self.web.env |= store
        self.verifier.env |= store
        # The jobs share the dict of the web server, which alone gets the pooler's address.
        self.jobs.env = dict(self.web.env)
        self.web.env["DATABASE_URL"] = (
            f"postgres://serving:p@127.0.0.1:{stage.pooler.port}/{versions.DATABASE}"
        )


class ChangeStage(versions.Stage):
    """One installation; its methods are what an operator does to it."""

    def __init__(
        self,
        database: postgres.Server,
        replica: postgres.Server,
        redis: redis_servers.Watched,
        pooler: pgbouncer.Pooler,
        directory: Path,
    ) -> None:
        self.replica, self.watched, self.pooler = replica, redis, pooler
        super().__init__(database, redis, directory)
        database.say(*ALTER_ROLE)
        self._renewed = 0

    def url_of(self, role: str) -> str:
        ports = f"127.0.0.1:{self.database.port},127.0.0.1:{self.replica.port}"
        url = f"postgres://{role}:p@{ports}/{versions.DATABASE}"
        return f"{url}?target_session_attrs=read-write"

    def use_proxy(self, proxy: nginx.Nginx) -> None:
        """Send service providers to this proxy, and make its next certificates."""
        self.proxy, self.verify_url = proxy, proxy.url
        assert proxy.certificate
        trusted = [proxy.certificate.read_text()]
        for number in range(RENEWALS):
            folder = self.directory / f"certificate-{number}"
            folder.mkdir()
            trusted.append(self_signed(folder).read_text())
        self.trusted = self.directory / "trusted.pem"
        self.trusted.write_text("".join(trusted))

    def renew_certificate(self) -> None:
        """As docs/install.md says: put both files in place, and reload nginx."""
        folder = self.directory / f"certificate-{self._renewed}"
        self._renewed += 1
        for name in ("proxy.crt", "proxy.key"):
            shutil.copy(folder / name, self.proxy.directory / name)
        self.proxy.process.send_signal(signal.SIGHUP)
        wanted = ssl.PEM_cert_to_DER_cert((folder / "proxy.crt").read_text())
        until(lambda: self._shown() == wanted, "nginx shows the old certificate", 20)

    def _shown(self) -> bytes | None:
        context = ssl.create_default_context(cafile=self.trusted)
        with (
            socket.create_connection(("127.0.0.1", self.proxy.port), timeout=5) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as secured,
        ):
            return secured.getpeercert(binary_form=True)

    def fail_over_redis(self) -> None:
        """Kill the primary; Sentinels promote the replica, and the old primary follows it."""
        lost = kill_the_primary(self.watched)
        follow(self.watched, lost)

    def fail_over_database(self) -> None:
        """Kill the primary, promote its replica, point the pooler to it.

        The old primary becomes the replica.
        """
        self.database.kill()
        # Before promoting a replica, make sure the old primary has stopped.
        until(lambda: not self.database.is_running(), "the primary is still running", 10)
        self.replica.promote()
        self.pooler.lead_to(self.replica.port)
        self.database, self.replica = self.replica, self.database
        self.replica.follow(self.database)

    def count_missing(self, decisions: set[str]) -> int:
        """How many of these decisions are not on record."""
        query = "SELECT count(*) FROM audit_event WHERE id = ANY(%s::uuid[])"
        [(found,)] = self.sql(query, list(decisions))
        return len(decisions) - int(str(found))

    def reported_losses(self) -> int:
        """How many decisions the log itself reports as lost."""
        [(count,)] = self.sql(
            "SELECT coalesce(sum((data->>'count')::int), 0) FROM audit_event"
            " WHERE kind = 'verifier.decisions.lost'"
        )
        return int(str(count))

    def kid(self, purpose: str) -> str:
        """The key of this purpose that signs now."""
        [(kid,)] = self.sql(
            "SELECT kid FROM kms_key WHERE purpose = %s AND active_from <= now()"
            " AND state <> 'disabled' ORDER BY active_from DESC LIMIT 1",
            purpose,
        )
        return str(kid)


@contextlib.contextmanager
def change_stage(directory: Path) -> Iterator[ChangeStage]:
    """PostgreSQL with a synchronous replica, the pooler, Redis, nginx; no process of ours yet."""
    settings = "-c max_wal_size=512MB"
    with (
        postgres.server(settings=settings) as database,
        postgres.replica(database, settings=settings) as replica,
        redis_servers.watched() as redis,
        pgbouncer.running(database.port, ["serving"], settings=SETTINGS) as pooler,
    ):
        stage = ChangeStage(database, replica, redis, pooler, directory)
        site = nginx.documented(web=stage.public.port, verifier=stage.questions.port)
        try:
            with nginx.nginx(site, directory / "nginx", tls=True) as proxy:
                stage.use_proxy(proxy)
                with trusting(stage.trusted):
                    yield stage
        finally:
            stage.down()


@contextlib.contextmanager
def trusting(bundle: Path) -> Iterator[None]:
    """The SDK trusts these certificates, as with SSL_CERT_FILE in its environment."""
    before = os.environ.get("SSL_CERT_FILE")
    os.environ["SSL_CERT_FILE"] = str(bundle)
    registry_http.ssl_context.cache_clear()
    try:
        yield
    finally:
        registry_http.ssl_context.cache_clear()
        if before is None:
            del os.environ["SSL_CERT_FILE"]
        else:
            os.environ["SSL_CERT_FILE"] = before


@dataclass
class Probe:
    """Sends requests without retries, and records when each began, ended, and got a good answer."""

    kind: ProbeKind
    place: Scene
    url: str
    trust: ssl.SSLContext
    # (began, ended, whether the answer was good).
    asked: list[tuple[float, float, bool]] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)
    _nonce: str | None = None

    def __post_init__(self) -> None:
        self._token, self._since = token_of(self.place), time.monotonic()

    def run(self, ended: threading.Event) -> None:
        with httpx.Client(
            verify=self.trust,
            timeout=PROBE_PATIENCE_SECONDS,
            # A new connection each time: a kept one would hide that new ones are refused.
            limits=httpx.Limits(max_keepalive_connections=0),
        ) as http:
            while not ended.wait(PROBE_SECONDS):
                began = time.monotonic()
                try:
                    good = self._ask(http)
                except httpx.TransportError:
                    good = False
                self.asked.append((began, time.monotonic(), good))

    def _ask(self, http: httpx.Client) -> bool:
        if self.kind.wants_token:
            answer = self._token_answer(http)
            good = answer.status_code == httpx.codes.CREATED
        else:
            answer = self._verify_answer(http)
            try:
                body = answer.json()
            except ValueError:
                body = {}
            self._nonce = body.get("nonce") or self._nonce
            # A demanded nonce counts as good: the next probe brings it.
            good = body.get("valid") is True or body.get("error") == "use_dpop_nonce"
        if not good and answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
            self.odd.append(f"{self.kind.name}: {answer.status_code} {answer.text[:200]}")
        return good

    def _verify_answer(self, http: httpx.Client) -> httpx.Response:
        self._renew_token()
        action: dict[str, Any] = PAYMENT if self.kind.pays else READ
        key = str(uuid.uuid4()) if self.kind.pays else None
        return http.post(
            f"{self.url}/v1/verify",
            json=question_of(self.place, self._token, action, self._nonce, key),
            auth=(self.place.client_id, self.place.client_secret),
        )

    def _renew_token(self) -> None:
        if time.monotonic() - self._since > RENEW_AFTER_SECONDS:
            # During an outage, try again at the next probe.
            with contextlib.suppress(AssertionError, httpx.TransportError):
                self._token, self._since = self.place.token(), time.monotonic()

    def _token_answer(self, http: httpx.Client) -> httpx.Response:
        content = json.dumps({"grant_id": self.place.grant_id}).encode()
        url = f"{self.url}/v1/tokens"
        proof = make_proof(
            self.place.signer,
            method="POST",
            url=url,
            iat=int(time.time()),
            jti=uuid.uuid4().hex,
            body=content,
        )
        headers = {"DPoP": proof, "Content-Type": "application/json"}
        return http.post(url, content=content, headers=headers)

    def windows(self, since: float, to: float) -> list[tuple[float, float]]:
        """Each stretch without a good answer that began between the two, as (begin, end).

        It ends with the first good answer, or with the last request if there was none since.
        """
        found: list[tuple[float, float]] = []
        began = None
        for at, ended, good in self.asked:
            if not good and began is None:
                began = at
            elif good and began is not None:
                found.append((began, ended))
                began = None
        if began is not None:
            found.append((began, ended))
        return [each for each in found if since <= each[0] < to]


class Probes:
    """All probes, each in a thread, for the length of `with`."""

    def __init__(self, stage: ChangeStage, places: Mapping[ProbeKind, Scene]) -> None:
        trust = ssl.create_default_context(cafile=stage.trusted)
        self.all = [
            Probe(kind, place, stage.url if kind.at_web else stage.verify_url, trust)
            for kind, place in places.items()
        ]
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(
                target=probe.run, args=(self._ended,), name=probe.kind.name, daemon=True
            )
            for probe in self.all
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(3 * PROBE_PATIENCE_SECONDS)
            assert not thread.is_alive(), thread.name

    @property
    def odd(self) -> list[str]:
        return [each for probe in self.all for each in probe.odd]
