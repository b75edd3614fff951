"""Security rules for all production code: how secrets are compared, what is never called."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.conf import settings

ROOT = Path(__file__).resolve().parent.parent
PLACES = ("agentauth", "audit", "kms", "registry", "verifier", "approvals", "examples")
SOURCES = sorted(
    path for place in PLACES for path in (ROOT / place).rglob("*.py") if "tests" not in path.parts
)

SECRET = re.compile(
    r"(?:^|_)(secret|(?:hex)?digest|hmac|mac|password|otp|(?<!status_)code|cookie|nonce|challenge|token)$",
    re.IGNORECASE,
)
# Comparisons of values that are not secret, each with its reason.
PUBLIC = {
    "nonce != self.nonce": "the SDK looks whether the server gave a new one",
    "fresh != nonce": "likewise",
    "snapshot.operation.action_digest != call.action_digest": (
        "the hash of what the caller sent itself"
    ),
    "data[_RP_HASH] != hashlib.sha256(rp_id.encode()).digest()": "the hash of our own host name",
    "purpose == Key.Purpose.TOKEN": "the name of a purpose",
    "file_digest(file, 'sha256').hexdigest() == digest": (
        "of a file that its verifier has before it"
    ),
}
FORBIDDEN_MODULES = {
    "pickle", "cPickle", "marshal", "shelve", "dill", "yaml", "xml", "lxml", "telnetlib", "ftplib",
    "imp", "code",
}  # fmt: skip
FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "mark_safe",
    "extra",
    "RawSQL",
    "system",
    "popen",
}


def nodes(kind: type[ast.AST]) -> Iterator[tuple[str, ast.AST]]:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, kind):
                yield str(path.relative_to(ROOT)), node


def last_name(node: ast.expr) -> str:
    """An operand's last word: `secret` of `row.secret`, `hexdigest` of a call; no error's code."""
    if isinstance(node, ast.Call):
        return last_name(node.func)
    if isinstance(node, ast.Attribute):
        return "" if last_name(node.value).lower().endswith("error") else node.attr
    return node.id if isinstance(node, ast.Name) else ""


def secrets_compared(tree: ast.AST) -> Iterator[str]:
    """Each `==` or `!=` with an operand named like a secret or its digest."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and any(
            isinstance(each, ast.Eq | ast.NotEq) for each in node.ops
        ):
            operands = [node.left, *node.comparators]
            # A constant in the source is not a secret: a status, an error's name.
            if not any(isinstance(each, ast.Constant) for each in operands) and any(
                SECRET.search(last_name(each)) for each in operands
            ):
                yield ast.unparse(node)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("row.secret == sent", True),
        ("sha256(sent).hexdigest() != kept", True),
        ("code == sent", True),
        ("hmac.compare_digest(row.digest, sent)", False),
        ("len(code) != 8", False),
        ("error.code == 'invalid_client'", False),
        ("decode(code) == sent", False),
        ("sent == KeyInUseError.code", False),
    ],
)
def test_DJ_23_the_rule_finds_what_it_is_for(line: str, *, found: bool) -> None:
    assert bool(list(secrets_compared(ast.parse(line)))) is found


def test_DJ_23_no_secret_is_compared_by_equality() -> None:
    """`hmac.compare_digest` on digests takes as long for a near miss as for a far one."""
    found = {
        line
        for path in SOURCES
        for line in secrets_compared(ast.parse(path.read_text()))
        if not any(line.startswith(known) for known in PUBLIC)
    }
    assert found == set()


def test_DJ_30_nothing_is_unpickled_evaluated_or_read_as_xml() -> None:
    found = set()
    for place, node in nodes(ast.Import):
        assert isinstance(node, ast.Import)
        found |= {
            (place, name.name)
            for name in node.names
            if name.name.split(".")[0] in FORBIDDEN_MODULES
        }
    for place, node in nodes(ast.ImportFrom):
        assert isinstance(node, ast.ImportFrom)
        if (node.module or "").split(".")[0] in FORBIDDEN_MODULES and not node.level:
            found.add((place, str(node.module)))
    for place, node in nodes(ast.Call):
        assert isinstance(node, ast.Call)
        name = last_name(node.func)
        # `re.compile` and `template.compile` are something else.
        if name in FORBIDDEN_CALLS and not (
            name == "compile" and isinstance(node.func, ast.Attribute)
        ):
            found.add((place, name))
    # The one text marked safe is escaped in the same expression.
    assert found == {("agentauth/openapi/page_context.py", "mark_safe")}


def test_DJ_19_no_refusal_raises_a_shared_exception_object() -> None:
    """An exception raised again keeps growing its traceback, whose frames keep secrets alive."""
    raised = {
        (place, node.exc.id)
        for place, node in nodes(ast.Raise)
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Name) and node.exc.id.isupper()
    }
    assert raised == set()


# Modules that print: the first makes foreign text safe for a terminal. The SDK's two checkers print
# ASCII JSON, since they import nothing else of ours; `serve` and `jobs` print numbers and the
# settings' address.
PRINTS = {
    "agentauth/cli/output.py",
    "agentauth/sdk/stderr_output.py",
    "agentauth/sdk/verify_log.py",
    "agentauth/sdk/verify_log_proof.py",
    "audit/management/base_commands.py",
    "agentauth/management/commands/serve.py",
    "agentauth/management/commands/jobs.py",
}


def test_commands_print_in_one_place() -> None:
    found = set()
    for place, node in nodes(ast.Call):
        assert isinstance(node, ast.Call)
        called = ast.unparse(node.func)
        if called == "print" or called.endswith((".stdout.write", ".stderr.write")):
            found.add(place)
    folders = ("/management/", "/sdk/", "/cli/")
    assert {place for place in found if any(each in place for each in folders)} == PRINTS


# Modules that open connections, or start programs that could.
NETWORK = {
    "socket", "ssl", "http.client", "urllib.request", "urllib3", "requests", "httpx", "aiohttp",
    "hvac", "smtplib", "poplib",
    "imaplib", "xmlrpc", "asyncio", "subprocess", "multiprocessing", "websockets", "boto3",
    "botocore", "grpc", "google.cloud", "pkcs11", "redis",
    "django.core.mail", "paramiko", "dns",
}  # fmt: skip
# Where the server may: the key service, Redis, the log's store and witnesses at addresses their
# operator set, and our own processes. Messages to people go to the operator's mail server, and to
# webhooks, whose addresses people type (approvals/notifications/channel_addresses.py). A Redis
# cluster itself names its nodes. Database and Celery's
# broker are reached by Django and Celery. A new line here must also hold SS-1, SS-2 and SS-4.
REACHES_OUT = {
    ("audit/bounded_http_post.py", "asyncio"),
    ("audit/bounded_http_post.py", "httpx"),
    # Only the kind of address that a name is resolved to.
    ("audit/bounded_http_post.py", "socket"),
    ("audit/bounded_http_post.py", "ssl"),
    # Their methods, to name calls in traces: none is made there.
    ("agentauth/observability/traced_calls.py", "botocore"),
    ("agentauth/observability/traced_calls.py", "redis"),
    ("audit/stores/s3.py", "boto3"),
    ("audit/stores/s3.py", "botocore"),
    ("kms/backends/awskms.py", "botocore"),
    ("kms/backends/gcpkms.py", "google.cloud"),
    ("kms/backends/gcpkms.py", "grpc"),
    ("kms/backends/pkcs11.py", "pkcs11"),
    ("kms/backends/vault.py", "hvac"),
    ("kms/backends/vault.py", "requests"),
    ("verifier/stores/redis_probe.py", "redis"),
    ("verifier/stores/log_size_mark.py", "redis"),
    ("verifier/stores/redis_servers.py", "asyncio"),
    ("verifier/stores/redis_servers.py", "redis"),
    ("verifier/stores/redis_servers.py", "ssl"),
    ("verifier/stores/redis_client.py", "asyncio"),
    ("verifier/stores/redis_client.py", "ssl"),
    ("verifier/stores/redis_servers_for_threads.py", "asyncio"),
    ("verifier/stores/redis_py_client.py", "redis"),
    ("verifier/stores/sentinels.py", "redis"),
    ("verifier/services/decision_stream_drain.py", "redis"),
    ("agentauth/server/thread_worker.py", "socket"),
    ("agentauth/server/thread_worker.py", "ssl"),
    # The kind of address it listens on.
    ("agentauth/observability/ops_listener.py", "socket"),
    ("agentauth/server/connection_balancing.py", "socket"),
    # Only the event loop: it accepts connections.
    ("agentauth/server/connection_balancing.py", "asyncio"),
    ("agentauth/server/loop_worker.py", "asyncio"),
    # Mail goes to the server EMAIL_HOST, which delivers to a person's address; smtplib is for its
    # errors.
    ("approvals/services/recovery_alert_mail.py", "django.core.mail"),
    ("approvals/services/recovery_alert_mail.py", "smtplib"),
    ("approvals/notifications/mail.py", "django.core.mail"),
    ("approvals/notifications/mail.py", "smtplib"),
    ("agentauth/server/asgi_exchange.py", "asyncio"),
    ("agentauth/observability/metrics_buffer.py", "asyncio"),
    ("agentauth/management/commands/serve.py", "socket"),
    ("agentauth/management/commands/serve.py", "subprocess"),
    # The decoder of logos, with limits and without an environment.
    ("registry/services/logo_encoding.py", "subprocess"),
    # Only the event loop: what these read arrives over Django's connections.
    ("agentauth/server/verifier_application.py", "asyncio"),
    ("verifier/asgi_endpoint.py", "asyncio"),
    ("verifier/services/verifier_process.py", "asyncio"),
    ("verifier/services/batch_fairness.py", "asyncio"),
    ("verifier/stores/group_commit.py", "asyncio"),
    ("verifier/services/state_cache.py", "asyncio"),
    ("verifier/services/cache_loader.py", "asyncio"),
}

# What agents and service providers run: the server imports none of it (pyproject.toml).
CLIENTS = ("cli", "integrations", "mcp")


def reaching(tree: ast.AST) -> Iterator[str]:
    """Each module of NETWORK imported anywhere in the file, or looked up by name."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [each.name for each in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [str(node.module), *(f"{node.module}.{each.name}" for each in node.names)]
        elif isinstance(node, ast.Call) and last_name(node.func) in {
            "import_module",
            "import_string",
        }:
            names = [str(each.value) for each in node.args if isinstance(each, ast.Constant)]
        yield from {
            known for known in NETWORK for name in names if f"{name}.".startswith(f"{known}.")
        }


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("import requests.adapters as x", {"requests"}),
        ("from urllib import request", {"urllib.request"}),
        ("from urllib.parse import urlsplit", set()),
        ("def f():\n    from http.client import HTTPConnection", {"http.client"}),
        ("from http import HTTPStatus", set()),
        ("from django.core import mail", {"django.core.mail"}),
        ("import_module('httpx')", {"httpx"}),
        ("from .requests import x", set()),
    ],
)
def test_SS_1_the_rule_finds_what_it_is_for(line: str, found: set[str]) -> None:
    assert set(reaching(ast.parse(line))) == found


def test_SS_1_SS_7_SS_8_the_server_reaches_out_in_the_named_places_alone() -> None:
    """The server never contacts an address that a caller sent or registered, but webhooks."""
    outside = ("examples", "agentauth/sdk", *(f"agentauth/{each}" for each in CLIENTS))
    server = [
        path for path in SOURCES if not any(path.is_relative_to(ROOT / each) for each in outside)
    ]
    found = {
        (str(path.relative_to(ROOT)), name)
        for path in server
        for name in reaching(ast.parse(path.read_text()))
    }
    assert found == REACHES_OUT


def test_DJ_12_no_sql_is_put_together_from_values() -> None:
    """SQL text is constant; values are passed beside it."""
    found = set()
    for place, node in nodes(ast.Call):
        assert isinstance(node, ast.Call)
        # Neither has a database: the protocol's `Statement` is what a person signs, the SDK's
        # `select` looks at a socket.
        if place.startswith(("examples/", "agentauth/protocol/", "agentauth/sdk/")):
            continue
        if last_name(node.func) in RUNS_SQL and node.args:
            text = node.args[0]
            if not (
                isinstance(text, ast.Constant) or (isinstance(text, ast.Name) and text.id.isupper())
            ):
                found.add((place, ast.unparse(node)))
    assert {place for place, _ in found} <= TABLE_NAMES_ONLY, found


# What takes SQL as its first argument: Django's functions, and ours.
RUNS_SQL = {"raw", "execute", "run_prepared", "select", "SelectQuery", "Insert", "Statement"}
# Where our names of tables and roles are formatted into SQL: triggers, the roles; or where one of
# two constants is chosen.
TABLE_NAMES_ONLY = {
    # Run the SQL they are given, like the two below.
    "agentauth/observability/traced_calls.py",
    "agentauth/postgresql/base.py",
    "audit/db/partition_dropping.py",
    "audit/log/event_inserts.py",
    "audit/db/role_granting.py",
    "audit/db/prebuilt_sql.py",
    "audit/db/trigger_operations.py",
    # The clause about seals that have ended.
    "registry/services/agent_key_lookup.py",
    "registry/services/token_state.py",
    "verifier/services/state_change_feed.py",
}


def test_a_row_is_not_locked_through_a_join() -> None:
    """After a lock wait PostgreSQL rereads the locked row only, not joined rows; `of` names it."""
    found = [
        place
        for place, call in nodes(ast.Call)
        if isinstance(call, ast.Call)
        and last_name(call.func) == "select_for_update"
        and "of" in {keyword.arg for keyword in call.keywords}
    ]
    assert not found, found


def test_DJ_30_celery_and_sessions_speak_json_alone() -> None:
    assert settings.SESSION_SERIALIZER.endswith("JSONSerializer")
    from agentauth.celery import app

    assert app.conf.accept_content == ["json"]
    assert app.conf.task_serializer == "json"


def test_DJ_34_csrf_exempt_is_used_only_in_the_sdk() -> None:
    """DRF exempts the API's views; tests/flows/test_hardening.py checks they ignore cookies."""
    found = {str(path.relative_to(ROOT)) for path in SOURCES if "csrf_exempt" in path.read_text()}
    # The decorator that guards a service provider's own views by token and proof.
    assert found == {"agentauth/integrations/django_decorators.py"}


def test_the_image_has_one_base_by_digest() -> None:
    bases = re.findall(r"^FROM (\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert len(bases) == 2
    assert len(set(bases)) == 1
    assert re.fullmatch(r"python:3\.13-slim@sha256:[0-9a-f]{64}", bases[0])


def test_DJ_27_the_scanners_run_where_ci_runs() -> None:
    assert "make audit" in (ROOT / ".ci/run").read_text()
    assert "tests.scan" in (ROOT / "Makefile").read_text()
    installs = [
        line
        for line in (ROOT / "Makefile").read_text().splitlines()
        if line.startswith("\t") and ("pip install" in line or "$(INSTALL)" in line)
    ]
    assert len(installs) == 3
    # All but the tool that makes the lock files itself.
    assert [line for line in installs if "--require-hashes" not in line] == [
        "\t$(BIN)/python -m pip install --quiet uv"
    ]
    for name in (
        "requirements.txt", "requirements-production.txt", "requirements-dev.txt", "tests/uv.txt",
    ):  # fmt: skip
        lock = (ROOT / name).read_text()
        assert "--hash=sha256:" in lock
        assert "://" not in lock
