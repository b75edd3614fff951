"""System checks with ids: unsafe production settings stop start-up, each with one clear line."""

import re
from typing import Any
from urllib.parse import unquote, urlsplit

from django.conf import settings
from django.core.checks import Error, register, run_checks
from django.core.exceptions import ImproperlyConfigured

from agentauth.observability import tracing
from agentauth.protocol.errors import InvalidRequestError
from agentauth.protocol.untrusted_text import check_host
from audit.archive import parquet
from audit.checkpoints.cosigning import witnesses
from audit.stores import store_uri_checks as stores
from audit.stores.store_uri_checks import store_error
from kms.backends.key_backend_setting import PLACES, package_error, place_error
from verifier.stores.redis_url import parse_redis_url

MIN_SECRET_CHARACTERS = 50
BROKER = re.compile(r"[a-z][a-z0-9+-]*://")
VAULT_LOGINS = ("TOKEN", "ROLE_ID", "KUBERNETES_ROLE")
PRODUCTION_KEY_BACKENDS = sorted(set(PLACES) - {"file"})


def stop_if_unsafe() -> None:
    """Run the checks as `manage.py` does before each command.

    Raises SystemExit that names each bad setting. Queries no database: it may be away, and
    processes forked later must not share a connection.
    """
    if serious := [
        str(each)
        for each in run_checks(databases=[])
        if each.is_serious() and not each.is_silenced()
    ]:
        raise SystemExit("\n".join(serious))


@register()
def production_is_safe(**_kwargs: Any) -> list[Error]:
    """Anything but a localhost PUBLIC_URL is production, and must hold all of this."""
    if settings.DEVELOPMENT:
        return []
    rules = [
        (
            "E003",
            settings.PUBLIC_URL.startswith("https://"),
            "PUBLIC_URL must be https in production.",
        ),
        (
            "E004",
            all(map(_is_random, (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS))),
            (
                "SECRET_KEY and each of SECRET_KEY_FALLBACKS must have at least "
                f"{MIN_SECRET_CHARACTERS} random characters."
            ),
        ),
        (
            "E005",
            "sqlite" not in settings.DATABASES["default"]["ENGINE"],
            "Production needs PostgreSQL: set DATABASE_URL.",
        ),
        (
            "E006",
            _roles_differ(),
            (
                "DATABASE_OWNER_URL and DATABASE_URL must name different roles: the serving role "
                "must not be able to change the log."
            ),
        ),
        (
            "E007",
            not settings.DEBUG and "*" not in settings.ALLOWED_HOSTS,
            "DEBUG must be off, and ALLOWED_HOSTS must not contain `*`.",
        ),
        (
            "E008",
            _key_home() in PRODUCTION_KEY_BACKENDS,
            (
                f"KEY_BACKEND must be one of: {', '.join(PRODUCTION_KEY_BACKENDS)}. Keys in files "
                "are for development."
            ),
        ),
        (
            "E009",
            _key_home() != "vault"
            or (
                _is_private(settings.VAULT.get("ADDR", ""))
                and any(map(settings.VAULT.get, VAULT_LOGINS))
            ),
            (
                "KEY_BACKEND=vault needs VAULT_TOKEN, VAULT_ROLE_ID or VAULT_KUBERNETES_ROLE, and "
                "a VAULT_ADDR that is https or on this host."
            ),
        ),
        (
            "E011",
            bool(settings.AUDIT_STORE),
            (
                "AUDIT_STORE must name a store outside the database for the log's checkpoints, "
                "such as s3://bucket/prefix."
            ),
        ),
    ]
    return [
        Error(message, id=f"agentauth.{number}") for number, holds, message in rules if not holds
    ]


@register()
def keys_can_be_made(**_kwargs: Any) -> list[Error]:
    """In development too: a backend without keys would show at the first rotation, months later."""
    pkcs11 = settings.PKCS11
    rules = [
        (
            "E013",
            _key_home() != "pkcs11"
            or (pkcs11.get("MODULE") and (pkcs11.get("PIN") or pkcs11.get("PIN_FILE"))),
            "KEY_BACKEND=pkcs11 needs PKCS11_MODULE, and PKCS11_PIN or PKCS11_PIN_FILE.",
        ),
        (
            "E016",
            settings.KEY_ALGORITHM in {"EdDSA", "ES256"},
            "KEY_ALGORITHM must be EdDSA or ES256.",
        ),
        ("E017", not (wrong := place_error(settings.KEY_BACKEND)), wrong),
    ]
    return [
        Error(message, id=f"agentauth.{number}") for number, holds, message in rules if not holds
    ]


def _is_random(text: str) -> bool:
    # A repeated letter is no secret.
    return len(text) >= MIN_SECRET_CHARACTERS and len(set(text)) > 4  # noqa: PLR2004


def _key_home() -> str:
    return str(settings.KEY_BACKEND).partition(":")[0]


@register()
def origins_are_host_names(**_kwargs: Any) -> list[Error]:
    """In development too: an origin that no manifest can claim would turn every agent away."""
    try:
        for origin in settings.TRUSTED_MODEL_ORIGINS:
            check_host(origin, "TRUSTED_MODEL_ORIGINS")
    except InvalidRequestError as error:
        return [Error(error.description, id="agentauth.E010")]
    return []


@register()
def places_can_be_read(**_kwargs: Any) -> list[Error]:
    """In development too, the addresses of Redis, store and broker must parse.

    Does not connect, and shows no URL, which may hold a password.
    """
    found = []
    try:
        if settings.REDIS_URL:
            parse_redis_url(settings.REDIS_URL)
    except ImproperlyConfigured as error:
        found.append(Error(str(error), id="agentauth.E021"))
    if settings.AUDIT_STORE and (wrong := store_error(settings.AUDIT_STORE)):
        found.append(Error(f"AUDIT_STORE: {wrong}", id="agentauth.E022"))
    if settings.CELERY_BROKER_URL and not BROKER.match(settings.CELERY_BROKER_URL):
        found.append(
            Error(
                "CELERY_BROKER_URL must be a URL such as redis://host:6379/1.", id="agentauth.E026"
            )
        )
    return found


@register()
def packages_are_installed(**_kwargs: Any) -> list[Error]:
    """The libraries of the chosen backends, in development too.

    Development archives nothing without pyarrow, since `make run` sets AUDIT_STORE by itself.
    """
    home = _key_home()
    found = [package_error(home, needed_by=f"KEY_BACKEND={home}")]
    if settings.AUDIT_STORE:
        found.append(stores.package_error(settings.AUDIT_STORE, needed_by="AUDIT_STORE=s3"))
        if not settings.DEVELOPMENT:
            found.append(parquet.package_error())
    found.append(tracing.package_error())
    return [Error(wrong, id="agentauth.E027") for wrong in found if wrong]


@register()
def witnesses_are_named(**_kwargs: Any) -> list[Error]:
    """A witness that cannot be asked would go unnoticed until it is needed."""
    try:
        witnesses()
    except InvalidRequestError as error:
        return [Error(f"AUDIT_WITNESSES: {error.description}", id="agentauth.E012")]
    return []


def _roles_differ() -> bool:
    urls = settings.DATABASE_OWNER_URL, settings.DATABASE_URL
    owner, serving = (unquote(urlsplit(url).username or "") for url in urls)
    return bool(owner) and owner != serving


def _is_private(url: str) -> bool:
    """Whether what is sent to `url` cannot be read on the way: TLS, or it never leaves the host."""
    parts = urlsplit(url)
    return parts.scheme == "https" or (
        parts.scheme == "http" and parts.hostname in {"127.0.0.1", "::1", "localhost"}
    )
