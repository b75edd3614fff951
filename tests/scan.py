"""`python -m tests.scan`: bandit on the code, advisories for locked packages, and the SBOM."""

import json
import subprocess
import sys

CODE = ["agentauth", "audit", "kms", "registry", "verifier", "approvals", "examples"]
# All that production installs; requirements.txt is a part of it.
LOCK = "requirements-production.txt"
PARTS = "sbom.json"


def code() -> bool:
    """No finding of medium or high severity; pyproject.toml gives the reason for each exclusion."""
    command = [sys.executable, "-m", "bandit", "-q", "-ll", "-c", "pyproject.toml", "-r", *CODE]
    return subprocess.run(command, check=False).returncode == 0


def advisories() -> bool:
    """No known vulnerability in locked packages. Packages without an answer are reported."""
    command = [
        sys.executable,
        "-m",
        "pip_audit",
        "-r",
        LOCK,
        "--require-hashes",
        "--disable-pip",
    ]
    done = subprocess.run([*command, "-f", "json"], check=False, capture_output=True, text=True)
    try:
        found = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        print(
            "NOT RUN: advisories, because their database did not answer:",
            *done.stderr.splitlines()[-1:],
        )
        return True
    unknown = [each["name"] for each in found if "skip_reason" in each]
    if unknown:
        print(
            f"NOT RUN: advisories of {len(unknown)} of {len(found)} packages, which the index "
            "does not describe"
        )
    bad = [(each["name"], fault["id"]) for each in found for fault in each.get("vulns", ())]
    for name, fault in bad:
        print(f"{name}: {fault}")
    return not bad


def parts() -> bool:
    """Write the SBOM (CycloneDX) from the lock file."""
    command = [
        sys.executable,
        "-m",
        "cyclonedx_py",
        "requirements",
        LOCK,
        "-o",
        PARTS,
    ]
    return subprocess.run(command, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(0 if all([code(), advisories(), parts()]) else 1)
