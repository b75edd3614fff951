"""Packages that only some settings need, and the sentence for an operator who lacks one.

requirements-production.txt has them, requirements.txt does not: docs/adr/0037-optional-packages.md.
kms/backends/key_backend_setting.py, audit/stores/store_uri_checks.py and audit/archive/parquet.py
say which setting needs which package.
"""

import importlib.util
import shlex
import sys
from typing import NamedTuple

from django.conf import settings

LOCK = "requirements-production.txt"


class Package(NamedTuple):
    """A package by its name at PyPI, and the module that we import from it."""

    name: str
    module: str

    def missing(self, needed_by: str) -> str:
        """What to install, in one line, if the package is not here; else "". Imports no module."""
        if _is_here(self.module):
            return ""
        return (
            f"{needed_by} needs the package {self.name}, which is not installed. Install what "
            f"production needs: {install_command()}"
        )


def install_command() -> str:
    """The command that adds the optional packages to the environment of this process."""
    lock = str(settings.BASE_DIR / LOCK)
    return shlex.join([sys.executable, "-m", "pip", "install", "--require-hashes", "-r", lock])


def _is_here(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        # A package that contains the module is missing too.
        return False
