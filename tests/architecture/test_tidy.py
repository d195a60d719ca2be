"""Rules of style that no linter of ours checks."""

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = ("shared", "services", "cli", "sim", "examples", "bench")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
FORBIDDEN_NAMES = {"utils", "helpers", "common", "manager", "base", "misc"}


def python_files(*folders: str) -> list[Path]:
    found = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert found
    return sorted(found)


@pytest.mark.parametrize(
    "path", python_files(*CODE, "tests"), ids=lambda p: str(p.relative_to(ROOT))
)
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_FILE_LINES


@pytest.mark.parametrize("path", python_files(*CODE), ids=lambda p: str(p.relative_to(ROOT)))
def test_functions_fit_a_screen_and_modules_say_what_they_are_for(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "no module docstring"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{node.name}: {length} lines"


def test_no_module_has_a_name_that_says_nothing() -> None:
    assert not [path for path in python_files(*CODE) if path.stem in FORBIDDEN_NAMES]


def test_every_span_name_and_attribute_is_used() -> None:
    """What telemetry declares, somebody sets: a name that nobody uses is a promise not kept."""
    declared = ast.parse((ROOT / "shared/anole_shared/telemetry.py").read_text())
    code = "\n".join(path.read_text() for path in python_files("services"))
    for node in declared.body:
        if isinstance(node, ast.ClassDef) and node.name in {"SpanName", "Attribute"}:
            for member in node.body:
                if isinstance(member, ast.Assign) and isinstance(member.targets[0], ast.Name):
                    name = f"{node.name}.{member.targets[0].id}"
                    assert name in code, f"{name} is declared but never used"


def test_tracked_files_name_no_place_of_one_machine() -> None:
    """Paths of whoever's machine this was written on do not belong here."""
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split("\0")
    homes = tuple(f"/{name}/" for name in ("work", "home", "Users"))
    for name in filter(None, tracked):
        path = ROOT / name
        if (
            path.suffix in {".py", ".md", ".toml", ".yaml", ".txt", ".json", ".sh", ""}
            and path.is_file()
        ):
            text = path.read_text(errors="replace")
            assert not [home for home in homes if f" {home}" in text or f'"{home}' in text], name
