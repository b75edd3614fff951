"""What deploy/kubernetes becomes: `kubectl kustomize`, which needs no cluster."""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.live import ROOT

FILES = ROOT / "deploy/kubernetes"
PROFILES = ("small", "standard", "large")
# The example of docs/kubernetes.md, with each profile.
SITES = tuple(f"site of {profile}" for profile in PROFILES)
SECRETS = Path("/run/secrets/agentauth")
# Kinds of pods that a profile lacks.
UNUSED = {"small": ("pgbouncer", "redis"), "standard": ("redis",), "large": ()}
Object = dict[str, Any]


def run_shell(text: str, folder: Path, **env: str) -> None:
    """Run commands of the page in `folder`. Raises CalledProcessError."""
    path = "/usr/local/bin:/usr/bin:/bin"
    subprocess.run(
        ["sh", "-eu", "-c", text],
        cwd=folder,
        env={"PATH": path, "HOME": str(folder)} | env,
        check=True,
        capture_output=True,
        text=True,
    )


def section(title: str) -> str:
    """A section of docs/kubernetes.md."""
    page = (ROOT / "docs/kubernetes.md").read_text()
    _, found, rest = page.partition(f"\n## {title}\n")
    assert found, title
    return rest.partition("\n## ")[0]


def blocks(text: str) -> list[str]:
    """The shell blocks of a part of the page."""
    return re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def secret_files() -> dict[str, set[str]]:
    """By kind of pod, the files of its Secret, as the table of the page says."""
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", section("Your settings"), re.MULTILINE)
    [head] = re.findall(r"^\| file \|(.*)\|$", section("Your settings"), re.MULTILINE)
    kinds = [each.strip() for each in head.split("|")][:-1]
    return {
        kind: {file for file, cells in rows if cells.split("|")[number].strip() == "x"}
        for number, kind in enumerate(kinds)
    }


def make_site(folder: Path, profile: str) -> Path:
    """The example as its page says: a copy with that profile and with all secrets."""
    shutil.copytree(FILES, folder, dirs_exist_ok=True)
    site = folder / "site"
    file = site / "kustomization.yaml"
    text = file.read_text().replace("../standard", f"../{profile}")
    if profile == "small":
        text = re.sub(r"^ *- secrets/redis_url\n", "", text, flags=re.MULTILINE)
    for kind in UNUSED[profile]:
        generator = rf"^  - name: agentauth-{kind}\n    files: .*\n"
        text, count = re.subn(generator, "", text, flags=re.MULTILINE)
        assert count == 1, kind
    file.write_text(text)
    [made] = blocks(section("Your settings"))
    run_shell(made, folder)
    (site / "ca.pem").write_text("certificates")
    for name in set.union(*secret_files().values()):
        secret = site / "secrets" / name
        if not secret.exists():
            secret.write_text(f"of {name}")
    return site


@cache
def rendered(name: str) -> tuple[Object, ...]:
    """The objects of a profile, or of the example with it. Each is rendered once."""
    if name in PROFILES:
        return render(FILES / name)
    with tempfile.TemporaryDirectory() as folder:
        return render(make_site(Path(folder), name.removeprefix("site of ")))


def render(folder: Path) -> tuple[Object, ...]:
    """The objects of a folder."""
    done = subprocess.run(
        ["kubectl", "kustomize", folder], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return tuple(yaml.load_all(done.stdout, yaml.CSafeLoader))


def of_kind(name: str, *kinds: str) -> Iterator[Object]:
    yield from (each for each in rendered(name) if each["kind"] in kinds)


def pods(name: str) -> dict[str, Object]:
    """By kind of process, the template of its pods; of the three parts of Redis, one."""
    templates = [
        each["spec"]["template"] for each in of_kind(name, "Deployment", "Job", "StatefulSet")
    ]
    return {each["metadata"]["labels"]["process"]: each for each in templates}


def container(pod: Object) -> Object:
    """The one that serves."""
    told: Object = pod["spec"]["containers"][0]
    return told


def environment(name: str, process: str) -> dict[str, str]:
    """The variables of that container, its own and those of the settings."""
    told = container(pods(name)[process])
    own = {each["name"]: each["value"] for each in told.get("env", [])}
    shared: dict[str, str] = {}
    for each in told.get("envFrom", []):
        assert each.keys() == {"configMapRef"}
        [found] = [
            one["data"]
            for one in of_kind(name, "ConfigMap")
            if one["metadata"]["name"] == each["configMapRef"]["name"]
        ]
        shared |= found
    return shared | own


def selects(selector: Object, labels: dict[str, str]) -> bool:
    """Whether a label selector takes in an object with these labels."""
    if not selector.get("matchLabels", {}).items() <= labels.items():
        return False
    for each in selector.get("matchExpressions", []):
        assert each["operator"] == "In", each
        if labels.get(each["key"]) not in each["values"]:
            return False
    return True
