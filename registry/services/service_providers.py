"""Service providers: created, changed, suspended, resumed, revoked; their secrets rotated."""

import hashlib
import re
import secrets
from collections.abc import Sequence
from datetime import datetime
from ipaddress import ip_address
from urllib.parse import unquote, urlsplit

from django.conf import settings
from django.db import IntegrityError, connection, transaction
from django.utils.text import slugify

from agentauth.protocol.capability import parse_allow_list
from agentauth.protocol.dpop import normalize_url
from agentauth.protocol.errors import (
    AgentAuthError,
    InvalidRequestError,
    InvalidStateError,
    NotFoundError,
)
from agentauth.protocol.identifiers import parse_id
from agentauth.protocol.untrusted_text import check_display_name, check_host
from audit import kinds
from audit.services import Actor, record
from kms.state_change_publisher import Subject, publish_change
from registry.models import ServiceProvider, ServiceProviderSecret
from registry.services.dependent_grant_suspension import follow_new_allow_list, follow_new_audience
from registry.services.lookalikes import check_is_no_word

SECRET_BYTES = 32
_MAX_AUDIENCE = 255
_AUDIENCE_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)*")
_MAX_SLUG = 80
_LOOPBACK = frozenset({"127.0.0.1", "localhost"})
# PostgreSQL advisory lock, held while an audience is added or changed.
_AUDIENCES = 0x41554449


def create_service_provider(
    *,
    name: str,
    audience: str,
    allowed: Sequence[str] = (),
    is_auditor: bool = False,
    require_nonce: bool = False,
    actor: Actor,
    now: datetime,
) -> tuple[ServiceProvider, str]:
    """A new active service provider and its secret, which is not stored and never shown again.

    `allowed` has at most 64 entries such as "read:calendar"; empty allows nothing. With
    `require_nonce`, proofs for it must carry a server nonce. Raises InvalidRequestError for a bad
    name, entry or audience, or one that overlaps another's (docs/protocol.md section 2).
    """
    check_display_name(name)
    check_is_no_word(name)
    parse_allow_list(list(allowed))
    check_audience(audience)
    with transaction.atomic():
        _hold_audiences()
        _check_disjoint(audience)
        service_provider = ServiceProvider(
            name=name,
            slug=_free_slug(name),
            audience=audience,
            allowed=list(allowed),
            is_auditor=is_auditor,
            require_nonce=require_nonce,
            created_at=now,
        )
        _insert(service_provider)
        secret = _add_secret(service_provider, now)
        record(
            kind=kinds.SERVICE_PROVIDER_CREATED,
            actor=actor,
            at=now,
            service_provider_id=service_provider.id,
            data={
                "name": name,
                "audience": audience,
                "allowed": list(allowed),
                "is_auditor": is_auditor,
                "require_nonce": require_nonce,
            },
        )
    return service_provider, secret


def _insert(service_provider: ServiceProvider) -> None:
    service_provider.set_seal()
    try:
        with transaction.atomic():
            service_provider.save(force_insert=True)
    except IntegrityError as error:
        # Another call took the slug or the audience between the check and the insert.
        raise InvalidRequestError("This name or audience was just taken. Try again.") from error


def change_audience(
    *, service_provider: ServiceProvider, audience: str, actor: Actor, now: datetime
) -> int:
    """Move the service provider to another URL; returns how many grants that suspends.

    Tokens and approvals name the old URL, so every grant there needs a new signature. The pages of
    pending requests are void and must be loaded again. Raises InvalidRequestError for a bad or
    overlapping URL, InvalidStateError as `lock_service_provider`.
    """
    check_audience(audience)
    with transaction.atomic():
        _hold_audiences()
        held = lock_service_provider(service_provider)
        if held.audience == audience:
            return 0
        _check_disjoint(audience, but=held)
        before, held.audience = held.audience, audience
        _save_sealed(held, "audience")
        publish_change(Subject.SERVICE_PROVIDER, held.pk, now=now)
        suspended = follow_new_audience(service_provider=held, actor=actor, now=now)
        record(
            kind=kinds.SERVICE_PROVIDER_AUDIENCE_CHANGED,
            actor=actor,
            at=now,
            service_provider_id=held.id,
            data={"before": before, "audience": audience, "grants_suspended": suspended},
        )
    service_provider.refresh_from_db()
    return suspended


def change_allowed(
    *, service_provider: ServiceProvider, allowed: Sequence[str], actor: Actor, now: datetime
) -> int:
    """Replace the allow-list; returns how many grants lie beyond it and are suspended.

    Raises InvalidRequestError for a bad entry, InvalidStateError as `lock_service_provider`.
    """
    parse_allow_list(list(allowed))
    with transaction.atomic():
        held = lock_service_provider(service_provider)
        if held.allowed == list(allowed):
            return 0
        before, held.allowed = held.allowed, list(allowed)
        _save_sealed(held, "allowed")
        suspended = follow_new_allow_list(service_provider=held, actor=actor, now=now)
        record(
            kind=kinds.SERVICE_PROVIDER_ALLOWED_CHANGED,
            actor=actor,
            at=now,
            service_provider_id=held.id,
            data={"before": before, "allowed": held.allowed, "grants_suspended": suspended},
        )
    service_provider.refresh_from_db()
    return suspended


def rotate_secret(*, service_provider: ServiceProvider, actor: Actor, now: datetime) -> str:
    """Add a secret and return it. The newest of the old ones stays valid, older ones end now.

    Raises InvalidStateError as `lock_service_provider`.
    """
    with transaction.atomic():
        ended = _end_secrets(lock_service_provider(service_provider), keep=1, now=now)
        secret = _add_secret(service_provider, now)
        publish_change(Subject.SERVICE_PROVIDER, service_provider.pk, now=now)
        record(
            kind=kinds.SERVICE_PROVIDER_SECRET_ROTATED,
            actor=actor,
            at=now,
            service_provider_id=service_provider.id,
            data={"ended": len(ended), "secrets": ended},
        )
    return secret


def end_previous_secrets(*, service_provider: ServiceProvider, actor: Actor, now: datetime) -> int:
    """End every secret but the newest, once the provider uses that one; returns how many ended."""
    with transaction.atomic():
        ended = _end_secrets(lock_service_provider(service_provider), keep=1, now=now)
        if ended:
            _record_ended(service_provider, ended, actor, now)
    return len(ended)


def end_secret(*, secret: ServiceProviderSecret, actor: Actor, now: datetime) -> None:
    """End one secret, even the last; an operator adds another. Raises InvalidStateError if over."""
    with transaction.atomic():
        living = ServiceProviderSecret.objects.filter(pk=secret.pk, revoked_at=None)
        if not living.update(revoked_at=now, seal=None):
            raise InvalidStateError("This secret has already ended.")
        _record_ended(secret.service_provider, [secret.pk], actor, now)


def _record_ended(
    service_provider: ServiceProvider, ended: list[int], actor: Actor, now: datetime
) -> None:
    publish_change(Subject.SERVICE_PROVIDER, service_provider.pk, now=now)
    record(
        kind=kinds.SERVICE_PROVIDER_SECRETS_ENDED,
        actor=actor,
        at=now,
        service_provider_id=service_provider.id,
        data={"ended": len(ended), "secrets": ended},
    )


def find_service_provider(reference: str) -> ServiceProvider:
    """The active service provider with this id or slug. Raises NotFoundError, also if unsealed."""
    found = find_any_service_provider(reference)
    if not found.is_active or not found.is_sealed():
        raise NotFoundError("No service provider has this id or slug.")
    return found


def find_any_service_provider(reference: str) -> ServiceProvider:
    """For operators: the provider with this id or slug, in any state. Raises NotFoundError."""
    try:
        by = {"pk": parse_id(reference)}
    except ValueError:
        by = {"slug": reference}  # type: ignore[dict-item]  # one key either way
    found = ServiceProvider.objects.filter(**by).first()
    if found is None:
        raise NotFoundError("No service provider has this id or slug.")
    return found


def suspend_service_provider(
    *, service_provider: ServiceProvider, actor: Actor, now: datetime
) -> None:
    """Refuse the provider and every token for it until resumed. Raises InvalidStateError."""
    states, kind = ServiceProvider.Status, kinds.SERVICE_PROVIDER_SUSPENDED
    with transaction.atomic():
        _move(service_provider, [states.ACTIVE], states.SUSPENDED, kind, actor, now)
        # The move locked the row, so no other suspension counts at the same time.
        service_provider.suspensions = (service_provider.suspensions or 0) + 1
        service_provider.save(update_fields=["suspensions"])


def resume_service_provider(
    *, service_provider: ServiceProvider, actor: Actor, now: datetime
) -> None:
    """Lift the suspension that the caller read.

    Approvals calls this with a verified signature over exactly this suspension. Raises
    InvalidStateError.
    """
    states, kind = ServiceProvider.Status, kinds.SERVICE_PROVIDER_RESUMED
    read = service_provider.suspensions
    _move(service_provider, [states.SUSPENDED], states.ACTIVE, kind, actor, now, suspensions=read)


def revoke_service_provider(
    *, service_provider: ServiceProvider, actor: Actor, now: datetime
) -> None:
    """End the provider permanently: it cannot authenticate, and no token for it is accepted."""
    states = ServiceProvider.Status
    old = [states.ACTIVE, states.SUSPENDED]
    _move(service_provider, old, states.REVOKED, kinds.SERVICE_PROVIDER_REVOKED, actor, now)


def check_audience(audience: str) -> None:
    """Refuse an audience unless it is an absolute URL in normal form, and not on our own origin.

    No final slash. https; in development also http on the loopback host. The host is a name, or a
    public address in its usual form: `127.1`, `2130706433` and `sp.example.` would be second names
    of one place, as `/%61pi`, `//api` and `/api;x` would be of `/api`. Raises InvalidRequestError.
    """
    try:
        parts, normal = urlsplit(audience), normalize_url(audience)
    except (AgentAuthError, ValueError) as error:
        raise InvalidRequestError("The audience must be an absolute URL.") from error
    if (
        len(audience) > _MAX_AUDIENCE
        or audience.endswith("/")
        or normal not in {audience, f"{audience}/"}
    ):
        # This also refuses query, fragment, userinfo, capitals and default ports.
        raise InvalidRequestError(
            "The audience must be a plain URL: lower-case host, no default port, no query, no "
            "final slash."
        )
    if not _AUDIENCE_PATH.fullmatch(parts.path):
        raise InvalidRequestError(
            "The audience's path may have only letters, digits and -._~ between single slashes."
        )
    host = parts.hostname or ""
    loopback = settings.DEVELOPMENT and host in _LOOPBACK
    if parts.scheme != "https" and not loopback:
        raise InvalidRequestError(
            "The audience must be an https URL (in development also http://localhost:port or "
            "http://127.0.0.1:port)."
        )
    if _origin(audience) == _origin(settings.ISSUER):
        raise InvalidRequestError("The audience may not share this registry's own origin.")
    if not loopback and not _is_public(host):
        raise InvalidRequestError(
            "The audience's host must be a name, or a public address in its usual form."
        )


def _is_public(host: str) -> bool:
    try:
        address = ip_address(host)
    except ValueError:
        return _is_name(host) and host.rpartition(".")[2] != "localhost"
    # Agents send their calls there: it must not be an address inside their own network.
    return str(address) == host and address.is_global and not address.is_multicast


def _is_name(host: str) -> bool:
    try:
        check_host(host)
    except InvalidRequestError:
        return False
    return True


def _hold_audiences() -> None:
    """Serialise changes of audiences until the commit: of two nested ones at once, one must lose.

    No row can be locked for this: the other's may not exist yet. SQLite has one writer anyway.
    """
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", [_AUDIENCES])


def lock_service_provider(service_provider: ServiceProvider) -> ServiceProvider:
    """The row, locked until the commit. Raises InvalidStateError if it is revoked or unsealed."""
    held = ServiceProvider.objects.select_for_update(no_key=True).get(pk=service_provider.pk)
    if held.status == ServiceProvider.Status.REVOKED:
        raise InvalidStateError("This service provider was revoked permanently.")
    if not held.is_sealed():
        # The change would seal whatever the row says now.
        raise InvalidStateError(
            "This service provider's row was not written by this registry: run "
            f"`{settings.COMMAND} verify_audit`."
        )
    return held


def _save_sealed(held: ServiceProvider, changed: str) -> None:
    held.set_seal()
    held.save(update_fields=[changed, "seal"])


def _check_disjoint(audience: str, *, but: ServiceProvider | None = None) -> None:
    """Refuse an audience that equals, contains or lies inside another: no proof may be good at two.

    Compared decoded and in lower case: audiences from before the rule on paths may have
    percent-encodings, which servers decode before they route, and some servers ignore case.
    """
    others = ServiceProvider.objects.filter(audience__startswith=_origin(audience))
    for other in others.exclude(pk=but.pk) if but else others:
        pair = (f"{unquote(each).casefold()}/" for each in (audience, other.audience))
        longer, shorter = sorted(pair, key=len, reverse=True)
        if longer.startswith(shorter):
            raise InvalidRequestError("The audience overlaps that of another service provider.")


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def _free_slug(name: str) -> str:
    base = slugify(name)[: _MAX_SLUG - 5] or "service-provider"
    taken = set(
        ServiceProvider.objects.filter(slug__startswith=base).values_list("slug", flat=True)
    )
    numbered = (f"{base}-{number}" for number in range(2, len(taken) + 3))
    return base if base not in taken else next(slug for slug in numbered if slug not in taken)


def _end_secrets(service_provider: ServiceProvider, *, keep: int, now: datetime) -> list[int]:
    live = service_provider.secrets.filter(revoked_at=None).order_by("-created_at", "-id")
    ended = [row.pk for row in live[keep:]]
    ServiceProviderSecret.objects.filter(pk__in=ended).update(revoked_at=now, seal=None)
    return ended


def _add_secret(service_provider: ServiceProvider, now: datetime) -> str:
    secret = secrets.token_urlsafe(SECRET_BYTES)
    row = ServiceProviderSecret(
        service_provider=service_provider,
        digest=hashlib.sha256(secret.encode()).digest(),
        created_at=now,
    )
    row.set_seal()
    row.save(force_insert=True)
    return secret


def _move(
    service_provider: ServiceProvider,
    old: Sequence[str],
    new: str,
    kind: str,
    actor: Actor,
    now: datetime,
    **as_read: int | None,
) -> None:
    with transaction.atomic():
        rows = ServiceProvider.objects.filter(pk=service_provider.pk, status__in=old, **as_read)
        # A revoked service provider has no seal.
        ended = {"seal": None} if new == ServiceProvider.Status.REVOKED else {}
        if not rows.update(status=new, **ended):
            raise InvalidStateError(
                f"The service provider cannot become {new} in its current state."
            )
        publish_change(Subject.SERVICE_PROVIDER, service_provider.pk, now=now)
        record(kind=kind, actor=actor, at=now, service_provider_id=service_provider.id)
    service_provider.refresh_from_db()
