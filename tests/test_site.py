"""The documentation site builds without a warning, and its pages fetch only from it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent
# Scripts, styles, fonts, pictures and frames: what a browser fetches without a click.
FETCHED = re.compile(
    r"""<(?:script|img|iframe|source)[^>]*\ssrc=["']?(?:https?:)?//"""
    r"""|<link[^>]*\srel=["']?(?:stylesheet|preload|preconnect|icon)[^>]*href=["']?(?:https?:)?//"""
    r"""|url\(["']?(?:https?:)?//"""
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=ROOT,
        # Without a network: a proxy that is nowhere answers for every address.
        env=os.environ
        | {"NO_MKDOCS_2_WARNING": "1"}
        | dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_site_is_built_with_its_reference_from_docstrings_and_openapi(site: Path) -> None:
    agent = (site / "reference/agent.html").read_text()
    assert "wait_for_decision" in agent
    assert "Ask a human for" in agent
    assert "/v1/verify/batch" in (site / "reference/http-api.html").read_text()


def test_a_reader_s_browser_fetches_nothing_from_elsewhere(site: Path) -> None:
    pages = [path for path in site.rglob("*") if path.suffix in {".html", ".css"}]
    assert len(pages) > 50
    assert [path.name for path in pages if FETCHED.search(path.read_text())] == []


def test_every_page_is_reached_from_the_navigation(site: Path) -> None:
    start = (site / "index.html").read_text()
    pages = {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    linked = set(re.findall(r'href="([^"#:]+\.html)', start))
    assert pages - linked <= {"404.html", "index.html"}
