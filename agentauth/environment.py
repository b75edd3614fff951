"""Read and check environment variables, for the settings module only.

A blank variable counts as unset. Errors name the variable and never show its value. A bad value
ends the process with one line: every process reads its settings first, and cannot run without them.
"""

import binascii
import contextlib
import os
import re
import stat
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final, NoReturn
from urllib.parse import urlsplit

from agentauth.protocol.encoding import b64u_decode
from agentauth.protocol.errors import EncodingError

# No dependency of ours uses these prefixes, so an unknown variable with one is a typing error.
_OURS: Final = (
    "AGENTAUTH_",
    "AUDIT_",
    "EMAIL_",
    "KEY_",
    "RECOVERY_",
    "SECRET_KEY",
    "SERVICE_PROVIDER_",
    "SUBJECT_KEY",
    "TRUSTED_",
)
# Kubernetes and Docker set these variables for services whose names begin with one of our prefixes.
_OF_SERVICES: Final = re.compile(
    r".*_(?:SERVICE_HOST|SERVICE_PORT(?:_.+)?|PORT(?:_\d+_(?:TCP|UDP)(?:_.+)?)?)"
)
# Names that may be set. `env` adds each one that it reads. The SDK reads the first of these, the
# tests the second, and the settings the third, but only in development.
_known = {"AGENTAUTH_REGISTRY", "AGENTAUTH_SHARED", "AGENTAUTH_TESTING"}
# OpenTelemetry's, by name; the last is the default.
_SAMPLERS: Final = (
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
    "",
)
_MAX_FILE_BYTES: Final = 64 * 1024
_MIN_SUBJECT_KEY_BYTES: Final = 32
_SUBJECT_KEY: Final = re.compile(r"([a-z0-9-]{1,16}):([A-Za-z0-9_-]+)")
# The key of every `sub` made before subject keys existed (registry/services/pairwise_subjects.py).
_LEGACY: Final = "legacy"


def refuse(code: str, message: str) -> NoReturn:
    """End the process with one line that says what is wrong, where, and what to do."""
    raise SystemExit(f"agentauth.{code}: {message}")


def commands(*, development: bool) -> tuple[str, str]:
    """How to type a management command here, and one that needs the database owner's password.

    In production it is the command that docs/install.md and the image create. In development it is
    this Python: in a virtual environment plain `python` is often another one, or none.
    """
    if not development:
        return "agentauth", "agentauth --owner"
    python, here = Path(sys.executable), Path.cwd()
    shown = f"{python.relative_to(here) if python.is_relative_to(here) else python} manage.py"
    return shown, shown


def env(name: str, default: str = "") -> str:
    """The value of one variable, without spaces around it; `default` if unset or blank."""
    _known.add(name)
    return os.environ.get(name, "").strip() or default


def secret(name: str) -> str:
    """The value of the variable, or the content of the file that `<name>_FILE` names.

    Empty if neither is set.
    """
    path = env(f"{name}_FILE")
    value = env(name)
    if not path:
        return value
    if value:
        refuse("E020", f"Set {name} or {name}_FILE, not both: unset one of them.")
    return _read(f"{name}_FILE", Path(path))


def _read(name: str, path: Path) -> str:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & stat.S_IROTH:
                refuse(
                    "E020", f"{name} names a file that every user can read: run `chmod o-r` on it."
                )
            content = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        refuse("E020", f"{name} names a file that cannot be read: {error.strerror}.")
    try:
        text = content.decode().strip()
    except UnicodeDecodeError:
        text = ""
    if not text or len(content) > _MAX_FILE_BYTES:
        refuse("E020", f"{name} names a file that is empty, longer than 64 KiB or not text.")
    return text


def number(name: str, default: int, *, least: int, most: int) -> int:
    """An integer from `least` to `most`; `default` if unset or blank."""
    text = env(name)
    if not text:
        return default
    # At most 12 digits, more than any limit has: Python refuses to convert very long numbers.
    if not re.fullmatch(r"[+-]?[0-9]{1,12}", text) or not least <= int(text) <= most:
        refuse("E018", f"{name} must be an integer from {least} to {most}.")
    return int(text)


def is_origin(url: str) -> bool:
    """Whether the URL is http or https, a host and an optional port, and nothing else."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        shown = f"[{host}]" if ":" in host else host
        origin = shown if parts.port is None else f"{shown}:{parts.port}"
    except ValueError:
        return False
    return (
        parts.scheme in {"http", "https"}
        and bool(host)
        and url.lower() == f"{parts.scheme}://{origin}"
    )


def choice(name: str, default: str, choices: Collection[str]) -> str:
    """One of `choices`; `default` if unset or blank."""
    value = env(name, default)
    if value not in choices:
        refuse("E023", f"{name} must be one of: {', '.join(choices)}.")
    return value


def mail(host: str, *, development: bool) -> dict[str, Any]:
    """Django's settings for mail, with `host`, the registry's own, in the default sender.

    Without EMAIL_HOST, development prints mail; production has an empty EMAIL_BACKEND and sends
    none.
    """
    server = env("EMAIL_HOST")
    tls = choice("EMAIL_TLS", "starttls", ("starttls", "implicit", "none"))
    backend = "smtp" if server else "console" if development else ""
    return {
        "EMAIL_BACKEND": f"django.core.mail.backends.{backend}.EmailBackend" if backend else "",
        "EMAIL_HOST": server,
        "EMAIL_PORT": number("EMAIL_PORT", 587, least=1, most=65_535),
        "EMAIL_HOST_USER": env("EMAIL_HOST_USER"),
        "EMAIL_HOST_PASSWORD": secret("EMAIL_HOST_PASSWORD"),
        "EMAIL_USE_TLS": tls == "starttls",
        "EMAIL_USE_SSL": tls == "implicit",
        # Seconds for each answer of the mail server, so that a hanging one does not stop the jobs.
        "EMAIL_TIMEOUT": 10,
        "DEFAULT_FROM_EMAIL": env("EMAIL_FROM", f"agentauth@{host}"),
    }


def traces() -> bool:
    """Whether to export traces, as OpenTelemetry's own variables say.

    They are checked here because its SDK, which reads them and more, ignores a malformed one.
    """
    places = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"
    protocols = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"
    endpoints = {name: value for name in places if (value := env(name))}
    # The first one that is set counts.
    protocol = next((name for name in protocols if env(name)), None)
    sampler, share = env("OTEL_TRACES_SAMPLER"), env("OTEL_TRACES_SAMPLER_ARG")
    disabled, exporter = env("OTEL_SDK_DISABLED"), env("OTEL_TRACES_EXPORTER")
    if not endpoints or disabled.lower() == "true" or exporter == "none":
        return False
    for name, url in endpoints.items():
        if not _is_endpoint(url):
            refuse(
                "E028",
                f"{name} must be a URL such as http://collector:4318, without a password: put "
                "credentials into OTEL_EXPORTER_OTLP_HEADERS.",
            )
    if protocol is not None and env(protocol) != "http/protobuf":
        refuse("E028", f"{protocol} must be http/protobuf.")
    if sampler.lower() not in _SAMPLERS:
        refuse("E028", f"OTEL_TRACES_SAMPLER must be one of: {', '.join(filter(None, _SAMPLERS))}.")
    if share and not re.fullmatch(r"0(\.[0-9]{1,9})?|1(\.0{1,9})?", share):
        refuse("E028", "OTEL_TRACES_SAMPLER_ARG must be a share from 0 to 1, such as 0.01.")
    return True


def _is_endpoint(url: str) -> bool:
    try:
        parts = urlsplit(url)
        # Reading the port raises ValueError if it is none.
        host, port = parts.hostname, parts.port
    except ValueError:
        return False
    return parts.scheme in {"http", "https"} and bool(host) and "@" not in url and port != 0


def section(prefix: str, *, secrets: Collection[str]) -> dict[str, str]:
    """All variables with this prefix, by the rest of their names.

    Those in `secrets` may come from files.
    """
    names = {name.removeprefix(prefix) for name in os.environ if name.startswith(prefix)}
    return {name: env(prefix + name) for name in names} | {
        name: secret(prefix + name) for name in secrets
    }


def secret_key(directory: Path, *, development: bool) -> str:
    """The server secret from the environment. Development makes one and keeps it in `directory`."""
    if value := secret("SECRET_KEY"):
        return value
    if not development:
        refuse(
            "E002",
            "set SECRET_KEY, or SECRET_KEY_FILE, in production: 50 random characters or more, "
            "the same for all processes.",
        )
    path = directory / "secret_key"
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists():
        draft = directory / f".secret_key.{os.getpid()}"
        # Before the secret is in it: the directory may be open to other users.
        draft.touch(mode=0o600)
        draft.write_text(os.urandom(48).hex())
        # A hard link is atomic: if processes start at once, one creates the file and all read it.
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
        draft.unlink()
    return path.read_text().strip()


def subject_keys(server_secret: str, *, command: str) -> Mapping[str, bytes]:
    """The subject keys by version, from lines of `version:key` (base64url).

    The first is for new pairs. If none is set, the only version is `legacy`, the key in use before
    subject keys existed. `command`: how to type a management command.
    """
    lines = secret("SUBJECT_KEY").split()
    keys: dict[str, bytes] = {}
    for line in lines:
        match = _SUBJECT_KEY.fullmatch(line)
        with contextlib.suppress(EncodingError, binascii.Error):
            if match and len(key := b64u_decode(match[2])) >= _MIN_SUBJECT_KEY_BYTES:
                keys[match[1]] = key
    if len(keys) != len(lines):
        refuse(
            "E024",
            "Each line of SUBJECT_KEY must be `version:key`, with a key of at least 32 bytes in "
            f"base64url and a version that no other line has. `{command} make_subject_key FILE` "
            "writes a valid file for SUBJECT_KEY_FILE.",
        )
    return keys or {_LEGACY: server_secret.encode()}


def refuse_unknown() -> None:
    """Refuse an unknown variable with one of our prefixes. Call it once all settings are read."""
    unknown = sorted(
        name
        for name in os.environ
        if name.startswith(_OURS) and name not in _known and not _OF_SERVICES.fullmatch(name)
    )
    if unknown:
        refuse(
            "E025",
            f"There is no setting {' or '.join(unknown)}: correct the name of the variable, "
            "or unset it.",
        )
