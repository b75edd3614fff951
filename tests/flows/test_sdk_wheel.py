"""The SDK as outsiders get it: a wheel, in an environment without Django.

It creates that environment, and needs no registry.
"""

import json
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
# What the wheel needs, with transitive dependencies; `pip check` reports a missing one.
NEEDED = {
    "anyio",
    "certifi",
    "cffi",
    "cryptography",
    "h11",
    "httpcore",
    "httpx",
    "idna",
    "pycparser",
    "pynacl",
    "rfc8785",
    "typing-extensions",
    "tzdata",
}

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    run(
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        directory,
        ".",
        cwd=ROOT,
    )
    (built,) = directory.glob("*.whl")
    return built


def test_the_wheel_holds_the_sdk_and_the_protocol_alone(wheel: Path) -> None:
    names = {
        name
        for name in zipfile.ZipFile(wheel).namelist()
        if not name.split("/")[0].endswith(".dist-info")
    }
    assert {"agentauth/__init__.py", "agentauth/py.typed", "agentauth/sdk/__main__.py"} <= names
    allowed = (
        "agentauth/__init__.py",
        "agentauth/py.typed",
        "agentauth/integrations/",
        "agentauth/protocol/",
        "agentauth/sdk/",
    )
    assert [name for name in names if not name.startswith(allowed)] == []
    assert [name for name in names if "/tests/" in name] == []


def test_wheel_works_without_django(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    pip = (python, "-m", "pip", "--disable-pip-version-check", "--quiet")
    (tmp_path / "needed.txt").write_text(locked(NEEDED))
    run(*pip, "install", "--require-hashes", "--no-deps", "-r", "needed.txt", cwd=tmp_path)
    run(*pip, "install", "--no-deps", wheel, cwd=tmp_path)
    run(python, "-m", "pip", "check", cwd=tmp_path)
    program = (
        "import importlib.util\n"
        "assert importlib.util.find_spec('django') is None\n"
        "from agentauth import AgentAuthClient, Capability\n"
        "from agentauth.sdk import VerifierClient\n"
        "AgentAuthClient('https://registry.example.com')\n"
        "print(Capability.read('calendar').label)\n"
    )
    assert run(python, "-W", "error", "-c", program, cwd=tmp_path) == "read:calendar\n"
    assert "verify-receipt" in run(
        python, "-W", "error", "-m", "agentauth.sdk", "--help", cwd=tmp_path
    )
    keygen = (
        "-m",
        "agentauth.sdk",
        "keygen",
        "--registry",
        "http://localhost:8000",
        "--key-file",
        "agent.json",
    )
    made = json.loads(run(python, *keygen, "--json", cwd=tmp_path))
    assert Path(made["key_file"]) == (tmp_path / "agent.json").resolve()
    assert (tmp_path / "agent.json").stat().st_mode & 0o777 == 0o600


def locked(names: set[str]) -> str:
    """The lock file's entries for these distributions, with hashes."""
    entries = re.split(r"\n(?=\S)", (ROOT / "requirements.txt").read_text())
    kept = [entry for entry in entries if re.split(r"[=\s]", entry, maxsplit=1)[0] in names]
    return "\n".join(kept) + "\n"
