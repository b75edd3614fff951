"""The one settings file: typed readers of the environment; unsafe production stops (checks.py)."""

import os
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from django.core.exceptions import ImproperlyConfigured

from agentauth.environment import (
    choice,
    commands,
    env,
    is_origin,
    mail,
    number,
    refuse,
    refuse_unknown,
    secret,
    secret_key,
    section,
    subject_keys,
    traces,
)
from agentauth.observability.logging_config import logging_config
from agentauth.postgresql.database_url import read_database_url

BASE_DIR = Path(__file__).resolve().parent.parent

# Development is exactly a localhost PUBLIC_URL; everything else gets the production checks.
# The URL of `make run` and `make demo`, unless another is set.
DEVELOPMENT_URL = "http://localhost:8000"
PUBLIC_URL = env("PUBLIC_URL", DEVELOPMENT_URL).rstrip("/")
_public = urlsplit(PUBLIC_URL)
# A blank one is refused too: production must not start as development because, for example, a
# variable of a Compose file is empty.
if not is_origin(PUBLIC_URL) or not os.environ.get("PUBLIC_URL", DEVELOPMENT_URL).strip():
    refuse("E001", "PUBLIC_URL must be an origin such as https://registry.example.com")
DEVELOPMENT = _public.scheme == "http" and _public.hostname == "localhost"
# How messages spell a management command; the second runs it as the database's owner.
COMMAND, OWNER_COMMAND = commands(development=DEVELOPMENT)
ISSUER, ORIGIN, RP_ID = PUBLIC_URL, PUBLIC_URL, _public.hostname or ""
DEBUG = False
# Only processes started with AGENTAUTH_TESTING=1, on a localhost PUBLIC_URL, are under test.
TESTING = DEVELOPMENT and env("AGENTAUTH_TESTING") == "1"
# Where a process under TESTING kills itself, e.g. "issue.after_commit" (audit/fault_injection.py).
FAULT_AT = env("FAULT_AT") if TESTING else ""

VAR_DIR = Path(env("VAR_DIR", str(BASE_DIR / "var")))
# Place (scheme:place) and algorithm of new signing keys (docs/keys.md); `file`: development only.
KEY_BACKEND, KEY_ALGORITHM = env("KEY_BACKEND", "file"), env("KEY_ALGORITHM", "EdDSA")
KEY_DIRECTORY, KEY_FILE_PASSPHRASE_FILE = VAR_DIR / "keys", env("KEY_FILE_PASSPHRASE_FILE")
# A key this old is rotated; 0: never.
KEY_ROTATION_DAYS = number("KEY_ROTATION_DAYS", 90, least=0, most=3650)
TOKEN_SIGNING = choice("TOKEN_SIGNING", "direct", ("direct", "delegated"))  # docs/adr/0016
# Settings of the key backends, each under its own prefix: {"ADDR": …, "TOKEN": …}.
VAULT = section("VAULT_", secrets=("TOKEN", "SECRET_ID"))
PKCS11 = section("PKCS11_", secrets=("PIN",))

SECRET_KEY = secret_key(VAR_DIR, development=DEVELOPMENT)
# Earlier SECRET_KEYs, or the next one: what they made is accepted, nothing new is made with them.
SECRET_KEY_FALLBACKS = secret("SECRET_KEY_FALLBACKS").split()
# Keys that derive the `sub` of a person at a service provider, by version; the first for new pairs.
SUBJECT_KEYS = subject_keys(SECRET_KEY, command=COMMAND)
ALLOWED_HOSTS = ["localhost", "127.0.0.1", "[::1]"] if DEVELOPMENT else [RP_ID]

INSTALLED_APPS = [
    "agentauth.apps.AgentAuthConfig",
    "audit",
    "kms",
    "registry",
    "verifier",
    "approvals",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "rest_framework",
]

MIDDLEWARE = [
    "agentauth.middleware.RequestIdMiddleware",
    "agentauth.observability.request_observation.ObservingMiddleware",
    "agentauth.middleware.ServerNonceMiddleware",
    "agentauth.security_headers.SecurityHeadersMiddleware",
    "agentauth.middleware.OverloadMiddleware",
    "agentauth.client_address.ForwardedMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "agentauth.middleware.OneHostMiddleware",
    "agentauth.middleware.PlainRequestMiddleware",
    "agentauth.middleware.InstallationMiddleware",
    "agentauth.middleware.HostClockMiddleware",
    "agentauth.middleware.NoBrowserMiddleware",  # Calls without a browser skip all below.
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "agentauth.middleware.LanguageMiddleware",
    "agentauth.middleware.RateLimitMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "agentauth.middleware.SameOriginMiddleware",
    "approvals.sessions.KeepSessionMiddleware",
    "agentauth.middleware.TimeZoneMiddleware",
    "agentauth.http_errors.PageErrorMiddleware",
]

# Web processes (gunicorn reads this too) and threads of each; long polls may hold a quarter.
WEB_CONCURRENCY = number("WEB_CONCURRENCY", 2, least=1, most=512)
WEB_THREADS = number("WEB_THREADS", 16, least=1, most=512)
LONG_POLL_SLOTS = WEB_THREADS // 4

# Rate limits: registry/caller_limits.py. Only tests may go without.
RATE_LIMITED = not TESTING or env("RATE_LIMITS") == "on"
SERVICE_PROVIDER_CALLS_PER_MINUTE = number(
    "SERVICE_PROVIDER_CALLS_PER_MINUTE", 60_000, least=1, most=1_000_000_000
)
# Bearer token for /metrics. Without one, only development serves them, to this machine.
METRICS_TOKEN = secret("METRICS_TOKEN")
# Where jobs and Celery answer /metrics and /health/…, as address:port; servers use their own port.
OPERATIONS_BIND = env("OPERATIONS_BIND")
# Whether traces are exported (agentauth/observability/tracing.py): by OpenTelemetry's variables.
TRACING = traces()
# Host names a manifest may claim as its model's origin; empty: any. Pages show it as a claim.
TRUSTED_MODEL_ORIGINS = env("TRUSTED_MODEL_ORIGINS").replace(",", " ").split()

ROOT_URLCONF, WSGI_APPLICATION = "agentauth.urls", "agentauth.wsgi.application"
APPEND_SLASH = False
TEMPLATES: list[dict[str, Any]] = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.template.context_processors.i18n",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "approvals.context_processors.navigation",
            ],
        },
    },
]

# DATABASE_URL serves, DATABASE_OWNER_URL migrates and grants. Without either: SQLite in VAR_DIR.
DATABASE_URL = secret("DATABASE_URL") or f"sqlite:///{VAR_DIR / 'agentauth.sqlite3'}"
DATABASE_OWNER_URL = secret("DATABASE_OWNER_URL")
_MIGRATING = len(sys.argv) > 1 and sys.argv[1] in {
    "migrate",
    "init_production",
    "grant_serving_role",
    "grant_verifier_role",
    "drop_audit_partitions",
}


def database(url: str) -> dict[str, Any]:
    """One database configuration for `url`, with time limits on every statement and lock."""
    try:
        config = read_database_url(url)
    except ImproperlyConfigured as error:
        raise SystemExit(str(error)) from None
    if config["ENGINE"] == "django.db.backends.sqlite3":
        # IMMEDIATE: a writer queues before it reads, so it never fails halfway. FULL: what we
        # acknowledged survives a power failure.
        config["OPTIONS"] = {
            "transaction_mode": "IMMEDIATE",
            "timeout": 20,
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;",
        }
        if TESTING:
            config["TEST"] = {"NAME": str(VAR_DIR / "test.sqlite3")}
    else:
        # Bounds every statement and lock, and prepares repeated statements. The URL's options win.
        config |= {
            "ENGINE": "agentauth.postgresql",
            "CONN_MAX_AGE": 600,
            "CONN_HEALTH_CHECKS": True,
        }
        ours: dict[str, Any] = {"server_side_binding": True, "prepare_threshold": 5}
        if _MIGRATING:  # May run for hours; waits less for a lock than callers behind it (1.6 s).
            ours |= {
                "answer_seconds": 86_400,
                "options": "-c statement_timeout=0 -c lock_timeout=1000",
            }
        config["OPTIONS"] = ours | config.get("OPTIONS", {})
    return config


# Replay cache: redis://…, or redis://a:1,b:2,c:3 for a cluster. Empty: in the database.
REDIS_URL = secret("REDIS_URL")

DATABASES = {
    "default": database(DATABASE_OWNER_URL if DATABASE_OWNER_URL and _MIGRATING else DATABASE_URL)
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

AUTH_USER_MODEL, AUTHENTICATION_BACKENDS = "registry.Human", ["approvals.passkeys.PasskeyBackend"]

REST_FRAMEWORK = {
    # Deny by default: a view without permissions answers no caller.
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "registry.authentication.AgentProofAuthentication",
        "registry.authentication.ServiceProviderAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["registry.permissions.DenyAll"],
    "DEFAULT_PARSER_CLASSES": ["agentauth.drf_json.StrictJSONParser"],
    "DEFAULT_CONTENT_NEGOTIATION_CLASS": "agentauth.drf_json.Negotiation",
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "EXCEPTION_HANDLER": "agentauth.http_errors.handle_exception",
    "UNAUTHENTICATED_USER": None,
    "DEFAULT_METADATA_CLASS": None,  # OPTIONS and `?format=` are not in the contract.
    "URL_FORMAT_OVERRIDE": None,
}

# Links from lower to higher apps at run time (docs/architecture.md), by dotted path.
COMMAND_GUARD = "agentauth.startup_checks.check_command"
AUDIT_SIGNER, AUDIT_KEYS = "kms.services.signer", "kms.services.verification_keys"
AUDIT_DISABLED_KEYS = "kms.services.disabled_keys"
AUDIT_GRANTS = "registry.services.evidence_contradictions.find_contradictions"
AUDIT_OBSERVER = "agentauth.observability.metrics.count_events"
KEY_OBSERVER = "agentauth.observability.metrics.observe_key_call"
DECISION_OBSERVER = "agentauth.observability.metrics.count_decision"
# External store of checkpoints and events: file:<folder> or s3://bucket/prefix. Tests set theirs.
AUDIT_STORE = env("AUDIT_STORE") or (
    f"file:{VAR_DIR / 'audit'}" if DEVELOPMENT and not TESTING else ""
)
# Witnesses of the log's checkpoints: comma-separated `vkey url` (c2sp.org/tlog-witness).
AUDIT_WITNESSES = [text for text in env("AUDIT_WITNESSES").split(",") if text.strip()]
STATE_PUBLISHER = "verifier.services.state_change_feed.publish"

# Hours in which a person can cancel a recovery of their account, and the server that mails them.
RECOVERY_WAIT_HOURS = number("RECOVERY_WAIT_HOURS", 24, least=24, most=336)
globals().update(mail(RP_ID, development=DEVELOPMENT))
# The first is what a visitor gets whose browser asks for none of them (agentauth/middleware.py).
LANGUAGES = [("en-gb", "English"), ("de", "Deutsch")]
LANGUAGE_CODE, TIME_ZONE, LOCALE_PATHS = "en-gb", "UTC", [BASE_DIR / "locale"]
FORMAT_MODULE_PATH = "agentauth.formats"
STATIC_URL, STATICFILES_DIRS = "/static/", [BASE_DIR / "static"]
# Development serves assets from the source folder; production what collectstatic gathered.
STATIC_ROOT = None if DEVELOPMENT else BASE_DIR / "staticfiles"
WHITENOISE_USE_FINDERS = DEVELOPMENT

DATA_UPLOAD_MAX_MEMORY_SIZE = 64 * 1024
FILE_UPLOAD_HANDLERS: list[str] = []
# Cookies: `__Host-` and Secure in production; on http://localhost a browser would drop both.
_PREFIX = "" if DEVELOPMENT else "__Host-"
SESSION_COOKIE_NAME = f"{_PREFIX}agentauth_session"
CSRF_COOKIE_NAME = f"{_PREFIX}agentauth_csrf"
LANGUAGE_COOKIE_NAME = f"{_PREFIX}agentauth_language"
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = LANGUAGE_COOKIE_SECURE = not DEVELOPMENT
SESSION_COOKIE_HTTPONLY = CSRF_COOKIE_HTTPONLY = LANGUAGE_COOKIE_HTTPONLY = True
LANGUAGE_COOKIE_AGE = 31_536_000
SESSION_COOKIE_SAMESITE = CSRF_COOKIE_SAMESITE = "Strict"
# Our own session store: keys are kept as digests; 30 minutes idle, 12 hours in all.
SESSION_ENGINE = "approvals.sessions"
SESSION_SERIALIZER = "django.contrib.sessions.serializers.JSONSerializer"
CSRF_FAILURE_VIEW = "agentauth.http_errors.csrf_failed"
SECURE_SSL_REDIRECT, SECURE_HSTS_SECONDS = not DEVELOPMENT, 0 if DEVELOPMENT else 31_536_000
SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = not DEVELOPMENT
# How many of our own reverse proxies stand in front. A header with fewer hops is not believed.
TRUSTED_PROXIES = number("TRUSTED_PROXIES", 0, least=0, most=16)
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if TRUSTED_PROXIES else None
SECURE_REDIRECT_EXEMPT = [r"^health/", r"^metrics$"]  # Probes come from inside, over http.
SECURE_CROSS_ORIGIN_OPENER_POLICY, SECURE_REFERRER_POLICY = "same-origin", "no-referrer"
X_FRAME_OPTIONS = "DENY"

CELERY_BROKER_URL = secret("CELERY_BROKER_URL")  # For the rest see celery.py.

# One JSON object a line in production, text in development. LOG_FORMAT overrides.
LOGGING = logging_config(
    as_json=choice("LOG_FORMAT", "text" if DEVELOPMENT else "json", ("json", "text")) == "json",
    level=choice("LOG_LEVEL", "WARNING", ("CRITICAL", "ERROR", "WARNING", "INFO", "DEBUG")),
)
refuse_unknown()
