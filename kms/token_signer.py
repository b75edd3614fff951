"""The signer of tokens: a token key itself, or a key of this process that the token key certified.

The private key is generated after the fork, stays in memory, and ends with the process. No request
waits for the KMS here: a request that finds the key half way through its life starts a short thread
that makes the next one. While no certified key may sign, the token key does.
"""

import logging
import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from django.conf import settings
from django.db import connections
from django.utils import timezone

from agentauth.protocol.errors import TemporarilyUnavailableError
from agentauth.protocol.keys import LocalSigner, PrivateKey, Signer
from agentauth.protocol.token import MAX_TOKEN_SECONDS, CertifiedKey
from audit.db.prebuilt_sql import Columns, SelectQuery
from kms.lifetimes import HANDOVER, lifetimes
from kms.models import Key
from kms.process_key_certificates import CERTIFIED_FOR, certify
from kms.services import signer
from kms.signing_rate import PACE
from kms.state_change_publisher import KEY_CHANGES

logger = logging.getLogger(__name__)

# A key is replaced after this share of its life, long before its end. Random, to spread the load.
_RENEW_AFTER: Final = (0.3, 0.5)
# A failed renewal is retried after this many seconds, also random.
_TRY_AGAIN: Final = (20.0, 40.0)
# The choice of signer is cached for this long, not made per token. Within it a key that was
# disabled may still sign, but what it signs is refused everywhere; and tokens of a key that was
# replaced stay valid longer than this (`kms.lifetimes.CLOCK_SKEW`).
KNOWN_FOR: Final = timedelta(seconds=1)
# What `lifetimes` needs of each token key that may still count, and whether it issued this
# process's certificate.
_KEYS_AND_MINE: Final = SelectQuery(
    "SELECT {}, EXISTS (SELECT 1 FROM kms_keycertificate WHERE issuer_id = k.id AND kid = %s "
    "AND state = 'certified')"
    " FROM kms_key k WHERE purpose = 'token' AND (needed_until IS NULL OR needed_until >= %s)",
    k=Columns(Key, {"purpose", "state", "active_from", "retired_at", "needed_until"}),
)


@dataclass(frozen=True, slots=True)
class ProcessKey:
    """A certified key of this process and its limits. Its representation shows no secret."""

    signer: LocalSigner
    limits: CertifiedKey
    usable_from: datetime
    renew_at: datetime


def _in_thread(work: Callable[[], None]) -> None:
    def run() -> None:
        try:
            work()
        finally:
            connections.close_all()

    threading.Thread(target=run, name="agentauth-certifying", daemon=True).start()


class ProcessKeys:
    """The certified keys of one process. `run` does work outside the request. Thread-safe."""

    def __init__(self, run: Callable[[Callable[[], None]], None] = _in_thread) -> None:
        self._run = run
        self.forget()

    def forget(self) -> None:
        """Drop all keys: a forked child must not share a key with its parent."""
        self._lock = threading.Lock()
        self._held: tuple[ProcessKey, ...] = ()
        self._renewing = False
        self._again_at: datetime | None = None

    def signer(self, *, issued_at: int, expires_at: int, now: datetime) -> ProcessKey | None:
        """The newest key that may sign a token with these times (Unix seconds) at `now`, or None.

        Whether its certificate still counts comes from the database, as for a token key.
        """
        seconds = int(now.timestamp())
        found: ProcessKey | None = None
        newest = self._held[0] if self._held else None
        due = newest is None or now >= newest.renew_at
        for held in self._held:
            within = held.limits.may_sign(issued_at=issued_at, expires_at=expires_at, now=seconds)
            if found is not None or not within or now < held.usable_from:
                continue
            counts, followed = _standing(held, now)
            if counts:
                found = held
            else:
                self._drop(held)
            # Renew at once if the token key was replaced or the certificate revoked.
            due = due or (held is newest and (followed or not counts))
        if due:
            self._renew(now)
        return found

    def _drop(self, held: ProcessKey) -> None:
        with self._lock:
            self._held = tuple(each for each in self._held if each is not held)

    def _renew(self, now: datetime) -> None:
        with self._lock:
            if self._renewing or (self._again_at is not None and now < self._again_at):
                return
            self._renewing = True
        try:
            self._run(self._make)
        except RuntimeError:
            # No thread could be started.
            logger.exception("no key could be made for this process")
            self._renewing = False

    def _make(self) -> None:
        now = timezone.now()
        try:
            private_key = PrivateKey.generate()
            row = certify(private_key.public, process=os.getpid(), now=now)
            limits = CertifiedKey(
                private_key.public,
                int(row.not_before.timestamp()),
                int(row.not_after.timestamp()),
                MAX_TOKEN_SECONDS,
            )
            renew_at = now + CERTIFIED_FOR * random.uniform(*_RENEW_AFTER)  # noqa: S311 — spreads load, keeps no secret
            made = ProcessKey(LocalSigner(private_key), limits, row.usable_from, renew_at)
            with self._lock:
                living = (each for each in self._held if each.limits.not_after > now.timestamp())
                self._held = (made, *living)
        except TemporarilyUnavailableError as error:
            logger.warning("no key was certified for this process: %s", error.description)
            self._again_at = now + timedelta(seconds=random.uniform(*_TRY_AGAIN))  # noqa: S311 — as above
        except Exception:
            logger.exception("no key was certified for this process")
            self._again_at = now + timedelta(seconds=random.uniform(*_TRY_AGAIN))  # noqa: S311 — as above
        finally:
            self._renewing = False


DELEGATE = ProcessKeys()
os.register_at_fork(after_in_child=DELEGATE.forget)


@dataclass(frozen=True, slots=True)
class _Choice:
    """A choice of signer: when it was made, TOKEN_SIGNING, and the count of key changes.

    `limits` are those of a certified key.
    """

    signer: Signer
    limits: CertifiedKey | None
    at: datetime
    way: str
    changes: int

    def holds(self, *, issued_at: int, expires_at: int, now: datetime) -> bool:
        within = self.limits is None or self.limits.may_sign(
            issued_at=issued_at, expires_at=expires_at, now=int(now.timestamp())
        )
        fresh = timedelta(0) <= now - self.at < KNOWN_FOR and self.changes == KEY_CHANGES.number
        return within and fresh and self.way == settings.TOKEN_SIGNING


class SignerChoice:
    """The last choice of this process."""

    def __init__(self) -> None:
        self.last: _Choice | None = None

    def forget(self) -> None:
        """Drop the choice: a forked child must not sign with its parent's key."""
        self.last = None


CHOSEN = SignerChoice()
os.register_at_fork(after_in_child=CHOSEN.forget)


@contextmanager
def turn_to_sign() -> Iterator[None]:
    """Admit a token request, before it costs a proof, a row and an event.

    Raises TemporarilyUnavailableError if the KMS would refuse to sign. A request that fails inside
    returns its turn; otherwise strangers could use up all turns.
    """
    last = CHOSEN.last
    if last is not None and last.limits is not None:
        yield
        return
    PACE.admit()
    try:
        yield
    except Exception:
        PACE.give_back()
        raise


def token_signer(*, issued_at: int, expires_at: int, now: datetime) -> Signer:
    """The signer of a token with these times (Unix seconds) at `now`, as TOKEN_SIGNING says.

    The choice is at most KNOWN_FOR old, and never older than a key change made by this process.
    Raises TemporarilyUnavailableError.
    """
    last = CHOSEN.last
    if last is not None and last.holds(issued_at=issued_at, expires_at=expires_at, now=now):
        return last.signer
    # Read before anything else, so that a change made meanwhile invalidates the choice.
    way, changes = settings.TOKEN_SIGNING, KEY_CHANGES.number
    if way == "delegated":
        held = DELEGATE.signer(issued_at=issued_at, expires_at=expires_at, now=now)
        if held is not None:
            CHOSEN.last = _Choice(held.signer, held.limits, now, way, changes)
            return held.signer
        # Do not cache: a certified key may be able to sign the next token.
        CHOSEN.last = None
        return signer(purpose=Key.Purpose.TOKEN, now=now)
    found = signer(purpose=Key.Purpose.TOKEN, now=now)
    CHOSEN.last = _Choice(found, None, now, way, changes)
    return found


def _standing(held: ProcessKey, now: datetime) -> tuple[bool, bool]:
    """Whether the key may sign at `now`, and whether its issuer was replaced. One query."""
    rows = _KEYS_AND_MINE.ask(held.signer.kid, now)
    for (_, certified), life in zip(
        rows, lifetimes((key for key, _ in rows), now=now), strict=True
    ):
        if not certified:
            continue
        if life.state == Key.State.ACTIVE:
            return True, False
        return bool(
            life.retired_at and life.verifies(now) and now < life.retired_at + HANDOVER
        ), True
    return False, True
