"""The steps of an installation, in order: `check --deploy` lists those that are still to do.

`init_production` does those in the middle, from the tables to the keys.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning, register  # noqa: A004 — Django's
from django.db import DatabaseError, InterfaceError, ProgrammingError, connection
from django.db.migrations.exceptions import NodeNotFoundError
from django.db.migrations.executor import MigrationExecutor
from django.utils import timezone

from agentauth.protocol.errors import TemporarilyUnavailableError
from audit.db.role_rights import is_verifier_role, may_change_log, missing_rights
from audit.models import QueueEntry
from audit.new_ids import made_at
from audit.stores import ImmutableError
from audit.stores.store_factory import require_lock
from kms.key_health import inspect_keys
from kms.models import Key, SealsPending, WiderSealsPending
from kms.services import may_sign
from registry.models import Human, Installation
from registry.services.pairwise_subjects import LEGACY
from registry.services.settings_agreement import disagreement
from verifier.models import Home
from verifier.services import rollback_hold
from verifier.services.host_clock_check import clock_problem
from verifier.stores.redis_probe import (
    EvictingServersError,
    OtherRegistryError,
    RedisProbe,
    RefusingServersError,
    ServersAwayError,
)

# PostgreSQL's insufficient_privilege.
_NO_RIGHT: Final = "42501"
# The jobs number events each second. 30 s is longer than a restart of the jobs takes, and short
# enough to report stopped jobs at the first check.
_NUMBERED_SECONDS: Final = 30


CANNOT_CREATE: Final = (
    "The role {role} of DATABASE_OWNER_URL cannot create tables: as a superuser, run "
    "`ALTER DATABASE {database} OWNER TO {role}`."
)


def first_line(error: Exception) -> str:
    """What the database said, without the hints that follow."""
    return str(error).partition("\n")[0].rstrip(".")


def may_create() -> bool:
    """Whether the owner's role may create tables. Any role may ask, so no owner login is needed."""
    if connection.vendor != "postgresql":
        return True
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT has_schema_privilege(rolname, 'public', 'CREATE') FROM pg_roles WHERE "
            "rolname = %s",
            [_owner()],
        )
        return bool((cursor.fetchone() or [False])[0])


def _owner() -> str:
    # Unquoted, as dj_database_url does.
    return unquote(urlsplit(settings.DATABASE_OWNER_URL).username or "")


def is_migrated() -> bool:
    try:
        executor = MigrationExecutor(connection)
    except NodeNotFoundError:
        # The database is too old for a squashed migration. `migrate` explains what to do.
        return False
    except ProgrammingError as error:
        if getattr(error.__cause__, "sqlstate", "") == _NO_RIGHT:
            # The migrations table exists, but this role may not read it. The next step (E044)
            # grants that right.
            return True
        raise
    return not executor.migration_plan(executor.loader.graph.leaf_nodes())


def _may_serve() -> bool:
    # `missing_rights` reports nothing for tables that do not exist, so check them first.
    return is_migrated() and (is_verifier_role() or not missing_rights("serving")[1])


def _is_no_verifiers() -> bool:
    return not is_migrated() or not is_verifier_role()


def _is_bounded() -> bool:
    """Whether the role of DATABASE_URL cannot change the log, as the owner or a superuser can."""
    return not is_migrated() or not may_change_log()


def _unlike_the_record() -> str:
    """How the settings differ from those recorded, and what to do; empty if they agree."""
    try:
        row = Installation.objects.filter(pk=Installation.ONLY).first()
    except (DatabaseError, InterfaceError):
        # There is no table yet, or no right to read it: nothing is recorded that we know of.
        row = None
    said = disagreement(row.fingerprint if row else None) or ""
    return said[:1].upper() + said[1:]


def _seals_are_pending() -> bool:
    try:
        return SealsPending.objects.exists() or WiderSealsPending.objects.exists()
    except (DatabaseError, InterfaceError):
        # The table does not exist yet; an earlier step reports that.
        return False


def _has_keys() -> bool:
    return all(may_sign(purpose=purpose, now=timezone.now()) for purpose in Key.Purpose.values)


def _has_admin() -> bool:
    return Human.objects.filter(is_staff=True, status=Human.Status.ACTIVE).exists()


# Django sorts messages by id, so the numbers order the steps. `_missing` fills in the {names}.
_STEPS: Final[tuple[tuple[str, Callable[[], bool], str], ...]] = (
    (
        "E041",
        may_create,
        CANNOT_CREATE,
    ),
    (
        "E043",
        is_migrated,
        (
            "The database is not migrated: run `{owner} init_production VERIFIER_ROLE`, which does "
            "the next steps too."
        ),
    ),
    (
        "E044",
        _may_serve,
        (
            "The role of DATABASE_URL lacks rights: run `{owner} grant_serving_role` and `{owner} "
            "grant_verifier_role ROLE`."
        ),
    ),
    (
        "E044",
        _is_no_verifiers,
        (
            "DATABASE_URL names the role of the verifier's processes: name the serving role there, "
            "as in the environment of the web servers and jobs."
        ),
    ),
    (
        "E044",
        _is_bounded,
        (
            "The role of DATABASE_URL may change the log, as the owner of the tables or a "
            "superuser can: name the serving role there."
        ),
    ),
    (
        "E045",
        lambda: not _unlike_the_record(),
        "{settings}.",
    ),
    ("E047", _has_keys, "A signing key is missing: run `{command} ensure_keys`."),
    (
        "E049",
        _has_admin,
        "There is no administrator: run `{command} setup_link`, and open the link it prints.",
    ),
)


@register(deploy=True)
def list_missing_steps(**_kwargs: Any) -> list[CheckMessage]:
    """List the missing steps and the warnings. Empty in development: `serve` does each step."""
    if settings.DEVELOPMENT:
        return []
    problems = {"E039": store_problem(), "E042": redis_problem()}
    services = [Error(said, id=f"agentauth.{number}") for number, said in problems.items() if said]
    return [*services, *_missing(), *_advice()]


def _missing() -> Iterator[CheckMessage]:
    try:
        connection.ensure_connection()
    except (DatabaseError, InterfaceError) as error:
        yield Error(
            f"The database does not answer ({first_line(error)}): check that it runs and that "
            "DATABASE_URL is correct. The steps in the database can only be checked after that.",
            id="agentauth.E040",
        )
        return
    if wrong := clock_problem():
        yield Error(wrong, id="agentauth.E038")
    told = {
        "command": settings.COMMAND,
        "owner": settings.OWNER_COMMAND,
        "role": _owner(),
        "database": settings.DATABASES["default"]["NAME"],
        "settings": _unlike_the_record(),
    }
    for number, holds, message in _STEPS:
        try:
            done = holds()
        except (DatabaseError, InterfaceError):
            # The check needs what an earlier step creates.
            done = False
        if not done:
            yield Error(message.format(**told), id=f"agentauth.{number}")
    try:
        yield from _running()
    except (DatabaseError, InterfaceError):
        # There is no table yet, or no right to read it, as reported above.
        return


def redis_problem() -> str:
    """What is wrong with Redis, and what to do; empty if it may hold the replay cache."""
    if not settings.REDIS_URL:
        return ""
    try:
        probe = RedisProbe()
        probe.check_owner()
        probe.run_ids()
    except (EvictingServersError, OtherRegistryError) as error:
        return f"{str(error).rstrip('.')}."
    except RefusingServersError:
        return "Redis refuses the user or the password: correct REDIS_URL."
    except ServersAwayError as error:
        return f"Redis does not answer ({error}): check that it runs and that REDIS_URL is correct."
    return ""


def store_problem() -> str:
    """What is wrong with the log's store, and what to do; empty if it locks what it holds."""
    if not settings.AUDIT_STORE:
        # E011 says so.
        return ""
    try:
        require_lock(settings.AUDIT_STORE)
    except ImmutableError as error:
        return error.description
    except TemporarilyUnavailableError as error:
        return (
            f"{error.description.rstrip('.')}: check that the bucket exists, and correct "
            "AUDIT_STORE or its credentials."
        )
    return ""


def _running() -> Iterator[CheckMessage]:
    """Check that the database is not held, the key backend signs, and the jobs number events."""
    row = Home.objects.filter(pk=Home.ONLY).first()
    if hold := row and rollback_hold.hold_of(row):
        yield Error(f"The database is {hold.reason}.", id="agentauth.E037")
    # Report only the first key: if the backend is unavailable, no key signs.
    if found := next((each for each in inspect_keys() if each.kid and each.problem), None):
        yield Error(
            f"The {found.purpose} key does not sign: {found.problem} To check every key, run "
            f"`{settings.COMMAND} check_keys`.",
            id="agentauth.E046",
        )
    oldest = QueueEntry.objects.order_by("pk").first()
    if oldest is not None and made_at(oldest.pk) < time.time() - _NUMBERED_SECONDS:
        yield Error(
            f"An event has waited for its number for more than {_NUMBERED_SECONDS} s: start "
            "`jobs`, or Celery's worker and beat, or look at their logs.",
            id="agentauth.E048",
        )


def _advice() -> Iterator[CheckMessage]:
    if _seals_are_pending():
        yield Warning(
            "Rows from before the upgrade have no seal, or one that does not cover every right. "
            "They are still accepted, though nothing proves that this registry wrote them. Once no "
            "process of the previous release runs or will be started again, run "
            f"`{settings.COMMAND} seal_rows`.",
            id="agentauth.W054",
        )
    if next(iter(settings.SUBJECT_KEYS)) == LEGACY:
        yield Warning(
            "SUBJECT_KEY is not set, so people's `sub` identifiers are derived from SECRET_KEY, "
            "which therefore cannot be rotated: see Rotating secrets in docs/operations.md.",
            id="agentauth.W050",
        )
    if settings.AUDIT_STORE.startswith("file:"):
        yield Warning(
            "AUDIT_STORE is a folder: unless it is on a write-once file system, an attacker "
            "who takes over this host can rewrite the copies of the log. Set it to a bucket with "
            "Object Lock: see The log's store in docs/operations.md.",
            id="agentauth.W051",
        )
    if not settings.EMAIL_HOST:
        yield Warning(
            "EMAIL_HOST is not set, so people learn of a recovery of their account only from "
            "their pages: set EMAIL_HOST and EMAIL_FROM, see Recovering an account in "
            "docs/operations.md.",
            id="agentauth.W053",
        )
    if not settings.METRICS_TOKEN:
        yield Warning(
            "METRICS_TOKEN is not set, so /metrics answers 404 and Prometheus cannot alert on "
            "anything: set it to a random text, see Metrics in docs/operations.md.",
            id="agentauth.W055",
        )
    if not settings.REDIS_URL and not settings.AUDIT_STORE.startswith("s3:"):
        yield Warning(
            "Neither REDIS_URL nor a store outside this host (AUDIT_STORE=s3://…) is set, so "
            "a restore of the database from a backup cannot be detected: set one of them, or "
            "follow docs/restore.md after every restore.",
            id="agentauth.W052",
        )
