"""An unreadable variable is refused in one line that names it, without its value."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentauth import environment
from agentauth.environment import (
    choice,
    is_origin,
    number,
    refuse_unknown,
    secret,
    section,
    subject_keys,
    traces,
)
from agentauth.protocol.encoding import b64u_encode

VALUE = "a-value-that-is-not-shown"


def refused(act: Callable[[], Any], *names: str) -> str:
    with pytest.raises(SystemExit) as caught:
        act()
    said = str(caught.value)
    assert said.startswith("agentauth.E")
    assert "\n" not in said
    assert VALUE not in said
    for name in names:
        assert name in said
    return said


def kept(path: Path, text: str = VALUE, mode: int = 0o600) -> str:
    path.write_text(text)
    path.chmod(mode)
    return str(path)


SECRETS = [
    "SECRET_KEY",
    "SECRET_KEY_FALLBACKS",
    "SUBJECT_KEY",
    "METRICS_TOKEN",
    "DATABASE_URL",
    "DATABASE_OWNER_URL",
    "REDIS_URL",
    "CELERY_BROKER_URL",
    "VAULT_TOKEN",
    "VAULT_SECRET_ID",
    "PKCS11_PIN",
]


@pytest.mark.parametrize("name", SECRETS)
def test_each_secret_may_stand_in_a_file(name: str, tmp_path: Path) -> None:
    """The settings read it with `secret`: a missing file is refused by name."""
    from agentauth.tests.test_settings import check

    done = check(tmp_path, **{name: "", f"{name}_FILE": str(tmp_path / "nothing")})
    assert done.returncode == 1
    assert done.stderr == (
        f"agentauth.E020: {name}_FILE names a file that cannot be read: No such file or "
        "directory.\n"
    )


def test_a_secret_is_read_from_a_file_of_one_s_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("METRICS_TOKEN_FILE", kept(tmp_path / "a", f"{VALUE}\n"))
    assert secret("METRICS_TOKEN") == VALUE
    monkeypatch.setenv("METRICS_TOKEN", VALUE)
    assert "not both" in refused(
        lambda: secret("METRICS_TOKEN"), "METRICS_TOKEN", "METRICS_TOKEN_FILE"
    )


@pytest.mark.parametrize(
    ("text", "mode"),
    [("", 0o600), (" \n", 0o600), (VALUE, 0o644), (VALUE, 0o604), ("x" * 70_000, 0o600)],
)
def test_world_readable_or_empty_secret_file_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, mode: int
) -> None:
    monkeypatch.setenv("METRICS_TOKEN_FILE", kept(tmp_path / "a", text, mode))
    refused(lambda: secret("METRICS_TOKEN"), "METRICS_TOKEN_FILE")
    monkeypatch.setenv("METRICS_TOKEN_FILE", str(tmp_path))
    refused(lambda: secret("METRICS_TOKEN"), "METRICS_TOKEN_FILE")


def test_a_section_takes_its_secrets_from_files_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VAULT_ADDR", "https://vault.example")
    monkeypatch.setenv("VAULT_TOKEN_FILE", kept(tmp_path / "token"))
    found = section("VAULT_", secrets=("TOKEN",))
    assert (found["ADDR"], found["TOKEN"]) == ("https://vault.example", VALUE)


@pytest.mark.parametrize("text", ["ten", "1.5", "0x10", "-1", "101", "1 0", "9" * 5_000, "١"])
def test_a_malformed_or_out_of_range_number_is_refused(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("A_NUMBER", text)
    refused(lambda: number("A_NUMBER", 3, least=0, most=100), "A_NUMBER", "from 0 to 100")
    monkeypatch.setenv("A_NUMBER", " 100 ")
    assert number("A_NUMBER", 3, least=0, most=100) == 100
    monkeypatch.setenv("A_NUMBER", "")
    assert number("A_NUMBER", 3, least=0, most=100) == 3


@pytest.mark.parametrize("blank", ["", "  "])
def test_a_blank_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch, blank: str) -> None:
    for name in ("A_NAME", "A_NUMBER", "A_WORD", "EMAIL_FROM", "EMAIL_HOST"):
        monkeypatch.setenv(name, blank)
    assert environment.env("A_NAME", "default") == "default"
    assert number("A_NUMBER", 3, least=0, most=9) == 3
    assert choice("A_WORD", "a", ("a", "b")) == "a"
    sender = environment.mail("r.example", development=True)["DEFAULT_FROM_EMAIL"]
    assert sender == "agentauth@r.example"


def test_the_secret_of_development_is_never_readable_by_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    modes: list[int] = []
    write = Path.write_text

    def watched(path: Path, text: str) -> int:
        done = write(path, text)
        modes.append(path.stat().st_mode & 0o777)
        return done

    monkeypatch.setattr(Path, "write_text", watched)
    monkeypatch.delenv("SECRET_KEY", raising=False)
    tmp_path.chmod(0o755)
    made = environment.secret_key(tmp_path, development=True)
    assert modes == [0o600]
    assert made == (tmp_path / "secret_key").read_text()


def test_a_word_that_is_none_of_the_choices_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_WORD", VALUE)
    refused(lambda: choice("A_WORD", "a", ("a", "b")), "A_WORD", "a, b")


@pytest.mark.parametrize(
    ("url", "good"),
    [
        ("https://registry.example.com", True),
        ("https://registry.example.com:8443", True),
        ("http://[::1]:8000", True),
        ("https://registry.example.com/", False),
        ("https://registry.example.com?x", False),
        ("https://registry.example.com#x", False),
        ("https://user@registry.example.com", False),
        ("https://registry.example.com:port", False),
        ("https://registry.example.com:", False),
        ("registry.example.com", False),
        ("ftp://registry.example.com", False),
        ("https://", False),
    ],
)
def test_an_origin_is_scheme_host_and_port_alone(url: str, good: bool) -> None:
    assert is_origin(url) is good


@pytest.mark.parametrize(
    "name", ["AUDIT_STOER", "KEY_BAKCEND", "AGENTAUTH_X", "SUBJECT_KEYS", "SECRET_KEY_FIEL"]
)
def test_an_unknown_variable_with_our_prefix_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, VALUE)
    refused(refuse_unknown, name)


def test_foreign_variables_stop_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of libraries with similar names, and those Kubernetes sets for services named like
    ours.
    """
    for name in (
        "VAULT_SKIP_VERIFY",
        "PKCS11_MODULE_PATH",
        "AWS_REGION",
        "REDIS_SERVICE_HOST",
        "AUDIT_PORT",
        "AGENTAUTH_SERVICE_HOST",
        "AGENTAUTH_SERVICE_PORT_HTTP",
        "AGENTAUTH_PORT_8000_TCP_ADDR",
    ):
        monkeypatch.setenv(name, "x")
    refuse_unknown()


@pytest.mark.parametrize(
    "text",
    [
        "nonsense",
        "1:short",
        f"1:{VALUE}",
        "1:" + "ä" * 43,
        "X:" + "A" * 43,
        "1:" + "A" * 43 + " 1:" + "B" * 43,
    ],
)
def test_a_subject_key_that_cannot_be_read_is_refused(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("SUBJECT_KEY", text)
    refused(lambda: subject_keys("s", command="agentauth"), "SUBJECT_KEY")


def test_subject_keys_are_lines_of_which_the_first_is_for_new_pairs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first, second = os.urandom(32), os.urandom(48)
    lines = f"2:{b64u_encode(first)}\nlegacy:{b64u_encode(second)}\n"
    monkeypatch.setenv("SUBJECT_KEY_FILE", kept(tmp_path / "key", lines))
    assert list(subject_keys("s", command="agentauth").items()) == [
        ("2", first),
        ("legacy", second),
    ]
    monkeypatch.setenv("SUBJECT_KEY_FILE", "")
    assert dict(subject_keys("secret", command="agentauth")) == {"legacy": b"secret"}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"REDIS_URL": f"{VALUE}:6379"}, "E021) REDIS_URL"),
        ({"REDIS_URL": f"https://{VALUE}"}, "E021) REDIS_URL"),
        ({"AUDIT_STORE": f"gs://{VALUE}/log"}, "E022) AUDIT_STORE"),
        ({"AUDIT_STORE": f"s3://b/log?lock_days={VALUE}"}, "E022) AUDIT_STORE"),
        ({"CELERY_BROKER_URL": VALUE}, "E026) CELERY_BROKER_URL"),
        ({"KEY_ROTATION_DAYS": VALUE}, "E018: KEY_ROTATION_DAYS"),
        ({"TRUSTED_PROXIES": "-1"}, "E018: TRUSTED_PROXIES"),
        ({"WEB_THREADS": "0"}, "E018: WEB_THREADS"),
        ({"LOG_FORMAT": VALUE}, "E023: LOG_FORMAT"),
        ({"DATABASE_URL": f"postgres://u:{VALUE}@host:port/name"}, "E019: the URL of the database"),
        ({"SECRET_KEY_FALLBACKS": "short"}, "E004) SECRET_KEY"),
        ({"AUDIT_STOER": VALUE}, "E025: There is no setting AUDIT_STOER"),
        ({"EMAIL_HOST_PASWORD": VALUE}, "E025: There is no setting EMAIL_HOST_PASWORD"),
    ],
)
def test_each_malformed_setting_stops_the_start_and_is_named(
    tmp_path: Path, changes: dict[str, str], named: str
) -> None:
    from agentauth.tests.test_settings import check

    done = check(tmp_path, **changes)
    assert done.returncode == 1
    assert f"agentauth.{named}" in done.stderr
    assert "Traceback" not in done.stderr
    assert VALUE not in done.stdout + done.stderr


def test_no_two_settings_of_one_name() -> None:
    """The allowed names are those that were read, so there is no second list to maintain."""
    assert {
        "AUDIT_STORE",
        "KEY_BACKEND",
        "SUBJECT_KEY_FILE",
        "TRUSTED_PROXIES",
    } <= environment._known


ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}


@pytest.mark.parametrize(
    ("variables", "exported"),
    [
        ({}, False),
        # Of other programs on the host.
        ({"OTEL_TRACES_SAMPLER": "jaeger_remote", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, False),
        (ENDPOINT, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://[::1]/v1/traces"}, True),
        (
            ENDPOINT | {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.5"},
            True,
        ),
        (ENDPOINT | {"OTEL_SDK_DISABLED": "TRUE"}, False),
        (ENDPOINT | {"OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_traces_are_exported_if_opentelemetry_s_variables_say_so(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], exported: bool
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert traces() is exported


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://user:{VALUE}@collector:4318"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:none"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://:4318"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "collector:4318"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_TRACES_SAMPLER", VALUE),
        ("OTEL_TRACES_SAMPLER_ARG", "1.5"),
    ],
)
def test_a_malformed_variable_of_opentelemetry_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """Its SDK would ignore it, and trace every request, or none."""
    for each, given in (ENDPOINT | {name: value}).items():
        monkeypatch.setenv(each, given)
    assert refused(traces, name).startswith(f"agentauth.E028: {name} ")
