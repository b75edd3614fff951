"""`make run` needs requirements.txt alone; a setting that needs more says what to install."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pytest_django.fixtures import Settings

from agentauth.checks import packages_are_installed
from agentauth.tests.test_settings import SAFE

ROOT = Path(__file__).resolve().parents[2]
# A Python that can import only the packages of requirements.txt.
ONLY_BASE = """
import sys
from tests import unprivileged
sys.meta_path.insert(0, unprivileged.OnlyLocked(unprivileged.BASE))
"""
FOLDERS = ("agentauth", "audit", "kms", "registry", "verifier", "approvals", "examples")
IMPORT_ALL = f"""
from importlib import import_module
from pathlib import Path
import django
django.setup()
for folder in {FOLDERS}:
    for path in Path(folder).rglob("*.py"):
        if "tests" not in path.parts:
            name = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
            try:
                import_module(name)
            except ModuleNotFoundError as error:
                print(name, "needs", error.name)
            except ImportError as error:
                # Modules of the wheel: tests/flows/test_sdk_wheel.py compares the extra they name.
                if "agentauth-sdk[" not in str(error):
                    raise
"""
CHECK = """
from django.core.management import execute_from_command_line
execute_from_command_line(["manage.py", "check"])
"""
GCP = "gcpkms:projects/p/locations/l/keyRings/r"


def with_only_base(program: str, var: Path, **env: str) -> subprocess.CompletedProcess[str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in {"AGENTAUTH_TESTING", *SAFE} and not name.startswith("COV")
    }
    kept |= {"DJANGO_SETTINGS_MODULE": "agentauth.settings", "VAR_DIR": str(var)} | env
    command = [sys.executable, "-c", ONLY_BASE + program]
    return subprocess.run(
        command, cwd=ROOT, env=kept, capture_output=True, text=True, check=False, timeout=120
    )


def test_all_modules_but_the_chosen_backends_import_without_extras(tmp_path: Path) -> None:
    done = with_only_base(IMPORT_ALL, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.splitlines()) == [
        "agentauth.observability.spans needs opentelemetry",
        "agentauth.observability.trace_export needs opentelemetry",
        "agentauth.observability.traced_calls needs opentelemetry",
        "agentauth.observability.traced_requests needs opentelemetry",
        "audit.stores.s3 needs boto3",
        "kms.backends.awskms needs botocore",
        "kms.backends.gcpkms needs google_crc32c",
        "kms.backends.pkcs11 needs pkcs11",
        "kms.backends.vault needs hvac",
    ]


def test_only_the_archives_parquet_module_imports_pyarrow() -> None:
    """Where the others may be imported: REACHES_OUT in tests/test_source.py."""
    found = {
        path.relative_to(ROOT).as_posix()
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        if "tests" not in path.parts
        and re.search(r"^\s*(?:import|from) pyarrow\b", path.read_text(), re.MULTILINE)
    }
    assert found == {"audit/archive/parquet.py"}


def test_default_settings_pass_the_checks_without_extras(tmp_path: Path) -> None:
    done = with_only_base(CHECK, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_production_without_extras_names_each_missing_package(tmp_path: Path) -> None:
    done = with_only_base(CHECK, tmp_path, **SAFE)
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if "agentauth." in line]
    assert [line.partition(", which")[0] for line in said] == [
        "?: (agentauth.E027) AUDIT_STORE=s3 needs the package boto3",
        "?: (agentauth.E027) KEY_BACKEND=vault needs the package hvac",
        "?: (agentauth.E027) The log's archive (AUDIT_STORE) needs the package pyarrow",
    ]


@pytest.mark.parametrize(
    ("changes", "module", "sentence"),
    [
        ({"KEY_BACKEND": "awskms:eu-central-1"}, "botocore", "KEY_BACKEND=awskms needs … boto3"),
        (
            {"KEY_BACKEND": GCP},
            "google.cloud.kms_v1",
            "KEY_BACKEND=gcpkms needs … google-cloud-kms",
        ),
        ({"KEY_BACKEND": GCP}, "google.cloud", "KEY_BACKEND=gcpkms needs … google-cloud-kms"),
        ({"KEY_BACKEND": "pkcs11:token"}, "pkcs11", "KEY_BACKEND=pkcs11 needs … python-pkcs11"),
        ({"KEY_BACKEND": "vault"}, "hvac", "KEY_BACKEND=vault needs … hvac"),
        ({"AUDIT_STORE": "s3://bucket/log"}, "boto3", "AUDIT_STORE=s3 needs … boto3"),
        (
            {"TRACING": True},
            "opentelemetry.sdk.trace",
            "OTEL_EXPORTER_OTLP_ENDPOINT needs … opentelemetry-sdk",
        ),
        (
            {"AUDIT_STORE": "file:/log", "DEVELOPMENT": False},
            "pyarrow",
            "The log's archive (AUDIT_STORE) needs … pyarrow",
        ),
    ],
)
def test_E027_names_setting_package_and_the_command_that_installs_it(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, object],
    module: str,
    sentence: str,
) -> None:
    for name, value in changes.items():
        setattr(settings, name, value)
    assert packages_are_installed() == []
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, f"{module}.kms_v1", raising=False)
    [error] = packages_are_installed()
    lock = ROOT / "requirements-production.txt"
    command = f"{sys.executable} -m pip install --require-hashes -r {lock}"
    missing = sentence.replace("…", "the package") + ", which is not installed."
    assert error.id == "agentauth.E027"
    assert error.msg == f"{missing} Install what production needs: {command}"


def test_development_starts_without_pyarrow(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.AUDIT_STORE = "file:/log"
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert packages_are_installed() == []
