"""The house stands as designed: floors, doors, sizes, and what git sees."""

from __future__ import annotations

import ast
import re
import statistics
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from core.process import run

ROOT = Path(__file__).resolve().parents[2]
FLOORS = {"core": 0, "wheels": 1, "lab": 1, "build": 2, "deploy": 2, "serve": 3, "tasks": 4}
ROOMS = [room for room in FLOORS if room != "tasks"]
RUN_ON_NODES = {"lab/train.py"}
"""Plain scripts that run inside a release, with what the stack brings."""


@dataclass(frozen=True)
class Module:
    """A source file of ours and its syntax tree."""

    path: str
    room: str
    text: str
    tree: ast.Module

    def imports(self) -> Iterator[str]:
        """Name every module that this one imports."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{self.path}: relative import"
                yield str(node.module)


@cache
def modules() -> tuple[Module, ...]:
    found = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))] + list(ROOT.glob("*.py"))
    ours = [path.relative_to(ROOT) for path in found if "sources" not in path.parts]  # those are wheels' own sources
    return tuple(
        Module(str(path), path.parts[0].removesuffix(".py"), text, ast.parse(text))
        for path in ours
        for text in [(ROOT / path).read_text(encoding="utf-8")]
    )


def every(name: str = "") -> pytest.MarkDecorator:
    chosen = [module for module in modules() if module.room == name or not name]
    return pytest.mark.parametrize("module", chosen, ids=lambda module: module.path)


@every()
def test_imports_run_downwards_only(module: Module) -> None:
    rooms = {name.split(".")[0] for name in module.imports()} & FLOORS.keys()
    upwards = [room for room in rooms - {module.room} if FLOORS[room] >= FLOORS[module.room]]
    assert not upwards, f"{module.path} imports {upwards}: tasks → serve → build, deploy → wheels, lab → core"


@every()
def test_fabric_is_imported_in_one_place(module: Module) -> None:
    tops = {name.split(".")[0] for name in module.imports()}
    assert not tops & {"fabric", "paramiko"} or module.path == "core/remote.py"


@every()
def test_processes_start_in_one_place(module: Module) -> None:
    tops = {name.split(".")[0] for name in module.imports()}
    assert "subprocess" not in tops or module.path == "core/process.py", "use core.process"


@every()
def test_what_is_imported_is_declared(module: Module) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    lines = [*project["project"]["dependencies"], *project["dependency-groups"]["build"]]
    declared = {re.split(r"[<>=\[ ]", line)[0].lower() for line in lines}
    tops = {name.split(".")[0] for name in module.imports()} - sys.stdlib_module_names - FLOORS.keys()
    undeclared = {top for top in tops if top.replace("_", "-") not in declared}
    assert not undeclared or module.path in RUN_ON_NODES, f"{module.path} imports {undeclared}, which pyproject.toml does not name"


@every()
def test_no_error_is_caught_wholesale(module: Module) -> None:
    handlers = [node for node in ast.walk(module.tree) if isinstance(node, ast.ExceptHandler)]
    for handler in handlers:
        caught = {name.id for name in ast.walk(handler.type) if isinstance(name, ast.Name)} if handler.type else set()
        assert handler.type, f"{module.path}:{handler.lineno} catches everything"
        assert "Exception" not in caught, f"{module.path}:{handler.lineno}"
        passed_on = isinstance(handler.body[-1], ast.Raise) and handler.body[-1].exc is None
        assert "BaseException" not in caught or passed_on, f"{module.path}:{handler.lineno} keeps what it caught"


@every()
def test_a_module_says_what_it_is(module: Module) -> None:
    assert ast.get_docstring(module.tree)


@every()
def test_a_file_stays_short(module: Module) -> None:
    lines = module.text.count("\n")
    assert lines <= 400


@pytest.mark.parametrize("room", ROOMS)
def test_half_of_the_functions_of_a_room_have_15_lines_or_fewer(room: str) -> None:
    lengths = [
        int(node.end_lineno or 0) - node.lineno + 1
        for module in modules()
        if module.room == room
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert not lengths or statistics.median(lengths) <= 15


@pytest.mark.processes
@pytest.mark.parametrize("path", ["build/new.py", "build/recipes/new.toml", "wheels/new.py", "requirements.lock"])
def test_git_sees_our_folders(path: str) -> None:
    assert run(["git", "check-ignore", "--no-index", path], cwd=ROOT, check=False).code == 1


@pytest.mark.processes
@pytest.mark.parametrize("path", [".venv/x", ".work/x", "dist/cpu/x.whl", "core/__pycache__/x.pyc"])
def test_git_ignores_what_is_made(path: str) -> None:
    assert run(["git", "check-ignore", "--no-index", "-q", path], cwd=ROOT, check=False).code == 0


def test_no_tests_hide_in_a_folder_that_pytest_skips() -> None:
    assert not [path for path in (ROOT / "tests").rglob("*") if path.is_dir() and path.name in {"build", "dist"}]


def test_the_root_is_not_installable() -> None:
    assert "build-system" not in tomllib.loads((ROOT / "pyproject.toml").read_text()), "build/ is a package of ours"
