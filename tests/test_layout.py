"""House rules no linter knows: sizes, places, names, docstrings, and lists that must stay true."""

import ast
import re
import subprocess
import tomllib
from pathlib import Path

from tests import endpoint_modes
from tests.run import UNIT_FOLDERS
from tests.unprivileged import versions

ROOT = Path(__file__).resolve().parent.parent
TOP_LEVEL = {
    ".ci", ".dockerignore", ".gitignore", "CHANGELOG.md", "CONTRIBUTING.md", "Dockerfile",
    "LICENSE", "Makefile", "README.md", "SECURITY.md",
    "agentauth", "approvals", "audit", "benchmarks", "conftest.py", "deploy", "docs", "examples",
    "kms", "locale", "manage.py", "mkdocs.yml", "pyproject.toml",
    "registry", "requirements-dev.in", "requirements-dev.txt", "requirements-production.in",
    "requirements-production.txt", "requirements.in", "requirements.txt", "static", "templates",
    "tests", "verifier",
}  # fmt: skip
# Each holds the one before it.
LOCKS = ("requirements", "requirements-production", "requirements-dev")
# Those of environments of their own.
APART = (
    "tests/ministack", "tests/frameworks/autogen", "tests/frameworks/langchain",
    "tests/frameworks/openai-agents", "tests/uv",
)  # fmt: skip
FORBIDDEN_NAMES = {"utils", "common", "core", "helpers", "lib", "misc"}
# The marks that tests/run.py selects by name after the unit tests.
STAGES = {"sweep", "production", "flow", "node", "slow", "browser", "faults"}
MAX_LINES = 500
MAX_SETTINGS_LINES = 280
# An operator on call reads all of it. Reasons belong in docs/adr, tests in tests/FAILURES.md.
MAX_FAILURES_BYTES = 15_000


def tracked() -> list[Path]:
    """Every file of the repository that is not ignored."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


FILES = tracked()
SOURCES = [path for path in FILES if path.suffix == ".py" and "migrations" not in path.parts]
PAGES = [path for path in FILES if path.suffix == ".md"]
DOCUMENTED = [
    path
    for path in SOURCES
    if "tests" not in path.parts
    and (
        path.is_relative_to(ROOT / "agentauth/protocol")
        or "services" in path.relative_to(ROOT).as_posix()
    )
]


def test_top_level_holds_what_the_map_names_and_nothing_else() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == TOP_LEVEL


def test_no_module_of_the_wiring_may_be_imported_by_an_app() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"][
        "contracts"
    ]
    [held] = [each for each in contracts if each["name"] == "No app imports the wiring"]
    modules = {
        f"agentauth.{path.relative_to(ROOT / 'agentauth').parts[0].removesuffix('.py')}"
        for path in SOURCES
        if path.is_relative_to(ROOT / "agentauth")
    }
    library = {
        f"agentauth.{each}"
        for each in ("__init__", "protocol", "sdk", "integrations", "mcp", "cli", "tests")
    }
    assert set(held["forbidden_modules"]) == modules - library


def test_a_file_stays_readable() -> None:
    assert not [path for path in SOURCES if len(path.read_text().splitlines()) > MAX_LINES]
    assert not [
        path for path in SOURCES if FORBIDDEN_NAMES & {path.stem, *path.relative_to(ROOT).parts}
    ]


def test_a_module_says_what_lives_in_it() -> None:
    sources = [path for path in SOURCES if "tests" not in path.parts and path.read_text().strip()]
    assert sources
    assert not [path for path in sources if not ast.get_docstring(ast.parse(path.read_text()))]


def test_public_functions_of_protocol_and_services_are_documented() -> None:
    assert DOCUMENTED
    bare = [
        (path, node.name)
        for path in DOCUMENTED
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert not bare


def test_what_runs_through_the_other_endpoint_is_named_as_it_is() -> None:
    """A name that fits nothing would leave tests out, or in, without a word."""
    folder = ROOT / "verifier/tests"
    named = [folder / f"test_{name}.py" for name in endpoint_modes.MODULES]
    assert not [path for path in named if not path.exists()]
    source = "".join(path.read_text() for path in named)
    prefixes = [prefix for mode in endpoint_modes.LEFT_OUT.values() for prefix in mode]
    assert not [prefix for prefix in prefixes if f"def {prefix}" not in source]


# Generated.
UNWRAPPED = {f"tests/faults/{name}.md" for name in ("CHANGES", "RESULTS", "chaos/CHAOS")}
MAX_COLUMNS = 100
FENCE = re.compile(r"^( *)(```|~~~).*?^\1\2", re.MULTILINE | re.DOTALL)
# A row of a table, a heading, the target of a reference, or one word, such as an address.
UNWRAPPABLE = re.compile(r"\s*(\||#|\[[^]]+\]:|((-|\*|\d+\.) )?\S+$)")


def test_prose_lines_of_markdown_are_at_most_100_columns() -> None:
    long = []
    for page in PAGES:
        if page.relative_to(ROOT).as_posix() not in UNWRAPPED:
            text = FENCE.sub(lambda block: "\n" * block[0].count("\n"), page.read_text())
            long += [
                (page, number)
                for number, line in enumerate(text.splitlines(), 1)
                if len(line) > MAX_COLUMNS and not UNWRAPPABLE.match(line)
            ]
    assert not long


LINK = re.compile(r"""\]\(([^)\s]+)\)|<img src="([^"]+)\"""")
MAX_PICTURE_BYTES = 150_000


def test_links_between_pages_lead_somewhere() -> None:
    broken = []
    for path in PAGES:
        for target in (each for each in links(path) if "://" not in each):
            name, _, anchor = target.partition("#")
            page = path.parent / name if name else path
            if not page.exists() or (anchor and anchor not in anchors(page)):
                broken.append((path, target))
    assert not broken


def links(page: Path) -> list[str]:
    """The targets of a page's links and pictures."""
    return [link or picture for link, picture in LINK.findall(page.read_text())]


def test_every_page_of_the_docs_is_in_their_index() -> None:
    index = ROOT / "docs/README.md"
    listed = {index.parent / target.partition("#")[0] for target in links(index)}
    pages = {path for path in PAGES if path.is_relative_to(ROOT / "docs")}
    assert {path for path in pages if not {path, path.parent} & (listed - {ROOT / "docs"})} == {
        index
    }


def test_a_picture_is_small() -> None:
    pictures = [path for path in FILES if path.is_relative_to(ROOT / "docs/images")]
    assert pictures
    assert not [path for path in pictures if path.stat().st_size > MAX_PICTURE_BYTES]


def test_every_make_target_a_page_names_is_there() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        named = re.findall(r"(?:`|^)make ([a-z]+)", page.read_text(), re.MULTILINE)
        assert set(named) <= targets, page


def anchors(page: Path) -> set[str]:
    """The headings of a page, as links refer to them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings
    }


def test_the_page_that_is_read_during_an_outage_is_short() -> None:
    assert (ROOT / "docs/failure-modes.md").stat().st_size <= MAX_FAILURES_BYTES


def test_settings_stay_one_short_file() -> None:
    assert len((ROOT / "agentauth/settings.py").read_text().splitlines()) <= MAX_SETTINGS_LINES


def test_each_direct_dependency_has_its_reason() -> None:
    for name in [*(f"{each}.in" for each in LOCKS), *(f"{each}.in" for each in APART)]:
        lines = [
            line
            for line in (ROOT / name).read_text().splitlines()
            if line and not line.startswith(("#", "-"))
        ]
        assert lines
        assert all("  # " in line for line in lines), name


def test_locks_carry_hashes_and_no_address() -> None:
    for name in [*(f"{each}.txt" for each in LOCKS), *(f"{each}.txt" for each in APART)]:
        text = (ROOT / name).read_text()
        assert "--hash=sha256:" in text
        assert not re.search(r"https?://|--index|--find-links", text)


def test_each_lock_holds_all_of_the_smaller_ones_in_the_same_versions() -> None:
    base, production, dev = (versions(ROOT / f"{name}.txt") for name in LOCKS)
    assert base.items() < production.items() < dev.items()


def test_production_installs_the_production_lock_and_make_run_the_small_one() -> None:
    named = re.compile(r"--require-hashes -r \S*?(requirements[a-z-]*\.txt)")
    lock = "requirements-production.txt"
    for name in ("Dockerfile", "docs/upgrade.md"):
        assert named.findall((ROOT / name).read_text()) == [lock], name
    # The second makes the environment of OpenBao.
    found = named.findall((ROOT / "docs/install.md").read_text())
    assert found == [lock, "requirements.txt"]
    found = named.findall((ROOT / "Makefile").read_text())
    assert found == ["requirements.txt", "requirements-dev.txt"]


def test_no_secret_is_compared_with_an_operator() -> None:
    # DJ-23: digests and codes are compared by hmac.compare_digest.
    pattern = re.compile(r"\b(digest|secret|code_hash|mac)\b\s*[!=]=\s")
    hits = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in SOURCES
        if "tests" not in path.parts
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if pattern.search(line)
    ]
    assert not hits


def test_a_file_of_tests_runs_in_some_stage() -> None:
    """Files of the unit stage by their place; others by a mark on every test in them."""
    unit = {ROOT / "tests", *(ROOT / folder for folder in UNIT_FOLDERS)}
    others = [
        path
        for path in SOURCES
        if path.name.startswith("test_")
        and path.is_relative_to(ROOT / "tests")
        and path.parent not in unit
    ]
    assert others
    for path in others:
        [marks] = [
            ast.unparse(node.value)
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark"
        ]
        assert STAGES & set(re.findall(r"mark\.(\w+)", marks)), path


def test_a_message_names_a_command_as_its_reader_types_it() -> None:
    """Messages use `settings.COMMAND`: `agentauth`, or Python and `manage.py` in a checkout."""
    names = {path.stem for path in SOURCES if path.parent.name == "commands"}
    bare = re.compile(rf"manage\.py \w|\b[Rr]un `?(?:{'|'.join(names)})\b")
    shown = [
        (path, text) for path in FILES if path.suffix == ".html" for text in [path.read_text()]
    ]
    for path in SOURCES:
        if not {"tests", "benchmarks"} & set(path.relative_to(ROOT).parts):
            tree = ast.parse(path.read_text())
            shown += [(path, text) for text in _texts(tree)]
    assert [(str(path), found[0]) for path, text in shown if (found := bare.search(text))] == []


def _texts(tree: ast.AST) -> set[str]:
    """All string literals of a module except docstrings."""
    texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    statements = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return {
        node.value for node in texts if isinstance(node.value, str) and id(node) not in statements
    }
