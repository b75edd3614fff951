"""Whether this process may act: its settings match those recorded for all processes.

A process with another SECRET_KEY, PUBLIC_URL or Redis would give answers that contradict the
others. So one row holds a fingerprint of the settings that must agree. Each process compares its
own settings with it before it serves (agentauth/startup_checks.py) and at every read of the replay
cache's row, at most a second apart (`verifier.services.replay_epochs.read_or_create_row`). One
command changes the record, with an event in the log.

The row names settings by their variables. It holds a secret as an id: a keyed hash that shows only
whether two are equal.
"""

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol
from urllib.parse import parse_qs, urlsplit

from django.conf import settings
from django.db import transaction
from django.db.models import Subquery

from agentauth.protocol.errors import InvalidStateError
from audit import kinds
from audit.services import Actor, record
from kms.seal_backfill import unsealed_rows
from registry import release_compatibility
from registry.models import Installation, Token
from registry.services.pairwise_subjects import (
    LEGACY,
    check_not_needed,
    pairwise_subject,
    pin_to_legacy,
)

# The columns that every read of the replay cache's row also returns, each as `installation_<name>`.
# Add any other column that may stop a process.
LOOKED_AT: Final = ("fingerprint", "release")
NOT_RECORDED: Final = "no settings are recorded for this installation"
_ID_LABEL: Final = b"agentauth/fingerprint/v1"
_ID_CHARACTERS: Final = 16
# A process may hold more of these keys than are recorded, so that a new key can be distributed
# before any process uses it.
_KEYS: Final = frozenset({"SECRET_KEY", "SUBJECT_KEY"})

Fingerprint = Mapping[str, Any]


class _Row(Protocol):
    """A row with what `looked_at` adds to it."""

    installation_fingerprint: Fingerprint | None
    installation_release: int | None


@dataclass(frozen=True, slots=True)
class Halt:
    """Why this process may not act.

    `told` is for callers. `reason` is for operators and says what to do. `check` is the failing
    check of readiness.
    """

    told: str
    reason: str
    check: str = "configuration"
    # Expected for a moment after a start; no operator need act.
    passes: bool = False


def looked_at() -> dict[str, Subquery]:
    """Annotations that add the row's columns to another query; all are None if there is no row."""
    row = Installation.objects.filter(pk=Installation.ONLY)
    return {f"installation_{name}": Subquery(row.values(name)[:1]) for name in LOOKED_AT}


def halt(row: _Row) -> Halt | None:
    """Why this process may not act, given the row; None if it may. This is decided here only."""
    if reason := release_disagreement(row.installation_release):
        return Halt("This process runs a release that does not match the database.", reason)
    if reason := disagreement(row.installation_fingerprint):
        return Halt("This process has other settings than the rest of the installation.", reason)
    return None


def is_database_ahead() -> bool:
    """Whether the database is at a later release than this code. Raises django.db errors."""
    return Installation.objects.filter(
        pk=Installation.ONLY, release__gt=release_compatibility.RELEASE
    ).exists()


def release_disagreement(recorded: int | None) -> str | None:
    """Why this code may not run on the database's release; None if it may or none is recorded."""
    return None if recorded is None else release_compatibility.disagreement(recorded)


def disagreement(recorded: Fingerprint | None) -> str | None:
    """How this process's settings differ from those `recorded` (None: nothing is); None if equal.

    Development needs no record: there is one process, or `manage.py serve` starts all with the
    same settings.
    """
    if recorded is None:
        return (
            None
            if settings.DEVELOPMENT
            else f"{NOT_RECORDED}; run `{settings.COMMAND} record_settings`"
        )
    names = different(recorded, fingerprint())
    if not names:
        return None
    return (
        f"{' and '.join(names)} of this process differ{'' if len(names) > 1 else 's'} from "
        "what is recorded for all processes."
        f" Correct this environment, or change the record with `{settings.COMMAND} "
        f"record_settings --change {' '.join(names)}`"
    )


def fingerprint() -> dict[str, Any]:
    """This process's settings that all processes must share, by variable. Contains no secret."""
    return {
        "PUBLIC_URL": settings.ISSUER,
        # The first key signs; the others are only accepted.
        "SECRET_KEY": [
            key_id(each.encode()) for each in (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS)
        ],
        "SUBJECT_KEY": [f"{name}={key_id(key)}" for name, key in settings.SUBJECT_KEYS.items()],
        "REDIS_URL": redis_place(settings.REDIS_URL),
        "AUDIT_STORE": store_place(settings.AUDIT_STORE),
    }


def different(recorded: Fingerprint, own: Fingerprint) -> list[str]:
    """Names of the settings with which a process with `own` may not act beside the `recorded` ones.

    A process must hold every recorded key, and its first key must be a recorded one.
    """
    return [name for name in own if not _agrees(name, recorded.get(name), own[name])]


def _agrees(name: str, recorded: Any, own: Any) -> bool:
    if name in _KEYS and isinstance(recorded, list):
        return own[0] in recorded and set(recorded) <= set(own)
    return bool(recorded == own)


def key_id(secret: bytes) -> str:
    """64 bits that identify a secret and, if it cannot be guessed, reveal nothing about it."""
    return hmac.new(secret, _ID_LABEL, hashlib.sha256).hexdigest()[:_ID_CHARACTERS]


def redis_place(url: str) -> str:
    """The location of Redis, without credentials: `host:port,host:port/db`; `none` for no URL."""
    if not url:
        return "none"
    parts = urlsplit(url)
    named = parts.netloc.rpartition("@")[2].split(",")
    hosts = sorted(each if re.search(r":[0-9]+$", each) else f"{each}:6379" for each in named)
    return f"{','.join(hosts)}/{parts.path.strip('/') or '0'}"


def store_place(uri: str) -> str:
    """The location of the store: scheme, place and endpoint, no options; `none` for no URI."""
    if not uri:
        return "none"
    parts = urlsplit(uri)
    endpoint = parse_qs(parts.query).get("endpoint", [""])[0]
    return f"{parts.scheme}:{parts.netloc}{parts.path}{f' at {endpoint}' if endpoint else ''}"


def record_settings(*, change: Iterable[str] = (), actor: Actor, now: datetime) -> list[str]:
    """Record this process's settings for all; returns the names of new and changed ones.

    Writes an event. The first run records all of them. Later, only those in `change` may differ, so
    that a second, wrong setting does not slip in with the intended one. Raises InvalidStateError,
    which names the other differences.
    """
    own = fingerprint()
    with transaction.atomic():
        row = Installation.objects.select_for_update().filter(pk=Installation.ONLY).first()
        old: Fingerprint = {} if row is None else row.fingerprint
        changed = [name for name in own if old.get(name) != own[name]]
        # A setting that an earlier version did not record is new, not changed.
        if unnamed := set(different(old, own)) & set(old) - set(change):
            names = " ".join(sorted(unnamed))
            raise InvalidStateError(
                f"Other settings differ from what is recorded: {names}. Correct them in this "
                "environment, or name them in --change too."
            )
        if changed or row is None:
            _keep_subjects(old.get("SUBJECT_KEY"), own["SUBJECT_KEY"])
            if set(old.get("SECRET_KEY", ())) - set(own["SECRET_KEY"]):
                _keep_seals()
            Installation.objects.update_or_create(
                pk=Installation.ONLY, defaults={"fingerprint": own, "recorded_at": now}
            )
            data = {"changed": changed, "before": dict(old), "after": own}
            record(kind=kinds.SETTINGS_RECORDED, actor=actor, at=now, data=data)
    return changed


def _keep_seals() -> None:
    """Refuse to drop a SECRET_KEY that seals rows. Raises InvalidStateError."""
    if lost := sum(1 for _row in unsealed_rows()):
        raise InvalidStateError(
            f"{lost} rows that grant a right are sealed with a SECRET_KEY that this environment "
            f"lacks: name it in SECRET_KEY_FALLBACKS here and run `{settings.COMMAND} seal_rows`; "
            "then record the settings without it."
        )


def _keep_subjects(old: list[str] | None, own: list[str]) -> None:
    """Refuse to drop or change a subject key version that made a `sub`. Raises InvalidStateError.

    `old` is None if none was recorded. Then every person with a token has a `sub` of the version
    `legacy`, and processes of a version without recorded settings may still run and make more.
    """
    first = own[0].partition("=")[0]
    if old is None:
        if Token.objects.exists():
            _check_legacy(first)
        elif first == LEGACY and not settings.DEVELOPMENT:
            raise InvalidStateError(
                f"SUBJECT_KEY is not set. Run `{settings.COMMAND} make_subject_key FILE`, and "
                "name the file in SUBJECT_KEY_FILE."
            )
    elif old != own:
        if any(each.startswith(f"{LEGACY}=") for each in old):
            pin_to_legacy()
        check_not_needed({each.partition("=")[0] for each in old if each not in own})


def _check_legacy(first: str) -> None:
    """Check that the first version is `legacy` and makes the `sub` of the newest token.

    Raises InvalidStateError.
    """
    if first != LEGACY:
        raise InvalidStateError(
            "Existing tokens have a `sub` made with SECRET_KEY. First record the settings without "
            "SUBJECT_KEY, or with its version `legacy` in the first line. Change SUBJECT_KEY once "
            "no process of the previous version runs."
        )
    token = Token.objects.select_related("grant__agent").latest("issued_at")
    human, provider = token.grant.agent.human_id, token.grant.service_provider_id
    if human and token.claims["sub"] != pairwise_subject(human, provider, version=LEGACY):
        raise InvalidStateError(
            "SECRET_KEY, or the version `legacy` of SUBJECT_KEY, is not the key that made the "
            "`sub` of the newest token."
            " Set the one that the running processes use."
        )
