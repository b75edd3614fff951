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
# What its extra `cli` adds.
FOR_CLI = {
    "annotated-doc",
    "annotated-types",
    "markdown-it-py",
    "mdurl",
    "pydantic",
    "pydantic-core",
    "pygments",
    "rich",
    "segno",
    "shellingham",
    "typer",
    "typing-inspection",
}
FOLDERS = ("protocol", "sdk", "integrations", "mcp", "cli")
# Each module is imported, or names the extra that it needs.
IMPORT_ALL = """
import importlib, pkgutil, agentauth
for module in pkgutil.walk_packages(agentauth.__path__, "agentauth.", onerror=lambda name: None):
    if module.name.endswith("__main__"):
        continue
    try:
        importlib.import_module(module.name)
    except ImportError as error:
        if "agentauth-sdk[" not in str(error):
            print(module.name, error)
"""
# What the types of the package promise an author with a strict type checker.
TYPED = """
from agentauth import AgentAuthClient, Capability
from agentauth.sdk import Allowed, Grant, VerifierClient


async def ask(client: AgentAuthClient) -> Grant:
    return await client.request_grant("my-api", [Capability.read("calendar")])


def check(verifier: VerifierClient, token: str, proof: str) -> Allowed:
    return verifier.verify(token=token, proof=proof, method="GET", url="https://api.example.com/x")


reveal_type(ask)
"""

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path, code: int = 0) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + (done.stderr if code else "")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    build = (sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", directory)
    run(*build, ".", cwd=ROOT)
    (built,) = directory.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the wheel alone."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    install(python, NEEDED, ROOT / "requirements.txt")
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", wheel, cwd=folder)
    run(python, "-m", "pip", "check", cwd=folder)
    return python


def install(python: Path, names: set[str], lock: Path) -> None:
    """Install these distributions in the versions of the lock file."""
    wanted = python.parent / f"{lock.stem}-needed.txt"
    wanted.write_text(locked(names, lock))
    how = ("--disable-pip-version-check", "--quiet", "install", "--require-hashes", "--no-deps")
    run(python, "-m", "pip", *how, "-r", wanted, cwd=python.parent)


def locked(names: set[str], lock: Path) -> str:
    """The lock file's entries for these distributions, with hashes."""
    entries = re.split(r"\n(?=\S)", lock.read_text())
    kept = [entry for entry in entries if re.split(r"[=\s]", entry, maxsplit=1)[0] in names]
    assert len(kept) >= len(names)
    return "\n".join(kept) + "\n"


def test_the_wheel_holds_what_agents_and_services_run(wheel: Path) -> None:
    names = {
        name
        for name in zipfile.ZipFile(wheel).namelist()
        if not name.split("/")[0].endswith(".dist-info")
    }
    assert {"agentauth/__init__.py", "agentauth/py.typed", "agentauth/cli/__init__.py"} <= names
    allowed = (
        "agentauth/__init__.py",
        "agentauth/py.typed",
        *(f"agentauth/{each}/" for each in FOLDERS),
    )
    assert [name for name in names if not name.startswith(allowed)] == []
    assert [name for name in names if "/tests/" in name] == []


def test_wheel_works_without_django(python: Path, tmp_path: Path) -> None:
    program = (
        "import importlib.util\n"
        "assert importlib.util.find_spec('django') is None\n"
        "from agentauth import AgentAuthClient, Capability\n"
        "from agentauth.sdk import VerifierClient\n"
        "AgentAuthClient('https://registry.example.com')\n"
        "print(Capability.read('calendar').label)\n"
    )
    assert run(python, "-W", "error", "-c", program, cwd=tmp_path) == "read:calendar\n"


def test_each_module_is_imported_or_names_its_extra(python: Path, tmp_path: Path) -> None:
    assert run(python, "-W", "error", "-c", IMPORT_ALL, cwd=tmp_path) == ""


@pytest.mark.long
def test_the_types_of_the_wheel_are_checked(python: Path, tmp_path: Path) -> None:
    (tmp_path / "snippet.py").write_text(TYPED)
    told = run(
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        f"--python-executable={python}",
        "--cache-dir=cache",
        "snippet.py",
        cwd=tmp_path,
    )
    assert "Coroutine[Any, Any, agentauth.sdk.registry_answers.Grant]" in told


def test_the_command_needs_its_extra_and_then_runs(python: Path, tmp_path: Path) -> None:
    agentauth = python.parent / "agentauth"
    assert "pip install 'agentauth-sdk[cli]'" in run(agentauth, "--help", cwd=tmp_path, code=2)
    install(python, FOR_CLI, ROOT / "requirements-dev.txt")
    run(python, "-m", "pip", "check", cwd=tmp_path)
    assert "verify-receipt" in run(agentauth, "--help", cwd=tmp_path)
    assert "agentauth-sdk 0." in run(agentauth, "--version", cwd=tmp_path)
    agent = ("--registry", "http://localhost:9", "--key-file", "agent.json", "--json")
    made = json.loads(run(agentauth, "keygen", *agent, cwd=tmp_path))
    assert Path(made["key_file"]) == (tmp_path / "agent.json").resolve()
    assert (tmp_path / "agent.json").stat().st_mode & 0o777 == 0o600
    found = json.loads(run(agentauth, "doctor", *agent, cwd=tmp_path, code=4))
    assert {each["check"] for each in found["checks"] if each["state"] == "problem"} == {
        "reachability"
    }
    assert "agentauth-sdk[mcp]" in run(agentauth, "mcp", cwd=tmp_path, code=2)
