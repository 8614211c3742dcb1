"""Bootstrapping: what is missing, who is asked, when .venv is made anew."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path

import pytest

from core import bootstrap
from core.bootstrap import Decision, Host, apt_install, decide, missing, possible, read_groups, stamp, wanted
from core.errors import HostNotReady, UsageError
from core.process import Completed
from lab.host import requirements

ROOT = Path(__file__).resolve().parents[2]
GROUPS = {"controller": ["rsync", "git"], "build": ["g++"], "lab": ["rsync", "debootstrap"]}
LISTING = "git installed\nrsync config-files\nzlib1g installed\n"


def host(*, root: bool = False, sudo: bool = False, terminal: bool = False, ci: bool = False) -> Host:
    return Host(root=root, sudo=sudo, terminal=terminal, ci=ci)


def test_packages_of_all_groups_are_asked_for_once_each() -> None:
    packages = wanted(GROUPS, ["controller", "lab"], ["python3.11-venv"])
    assert packages == ["debootstrap", "git", "python3.11-venv", "rsync"]


def test_a_group_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(UsageError, match="'labs'") as caught:
        wanted(GROUPS, ["labs"])
    assert "controller, build, lab" in caught.value.next_move


def test_a_package_counts_only_when_it_is_installed() -> None:
    assert missing(["git", "rsync", "g++"], LISTING) == ["rsync", "g++"]
    assert missing(["git"], LISTING) == []
    assert missing(["git"], "") == ["git"]


@pytest.mark.parametrize(
    ("here", "decision"),
    [
        (host(root=True, ci=True), Decision.INSTALL),
        (host(sudo=True, ci=True), Decision.INSTALL),
        (host(root=True, ci=True, terminal=True), Decision.INSTALL),
        (host(root=True, terminal=True), Decision.ASK),
        (host(sudo=True, terminal=True), Decision.ASK),
        (host(root=True), Decision.STOP),
        (host(sudo=True), Decision.STOP),
        (host(ci=True), Decision.STOP),
        (host(terminal=True), Decision.STOP),
        (host(), Decision.STOP),
    ],
)
def test_who_decides_about_missing_packages(here: Host, decision: Decision) -> None:
    assert decide(["g++"], here) is decision
    assert decide([], here) is Decision.NOTHING


def test_a_group_with_a_question_mark_is_left_out_where_nobody_can_install_it() -> None:
    assert possible(["build", "lab?"], host()) == ["build"]
    assert possible(["build", "lab?"], host(sudo=True)) == ["build", "lab"]
    assert possible(["build", "lab?"], host(root=True)) == ["build", "lab"]


def test_the_apt_line_can_be_pasted() -> None:
    line = " ".join(apt_install(["g++", "rsync"], root=False))
    assert line == "sudo apt-get install -y --no-install-recommends g++ rsync"
    assert apt_install(["g++"], root=True)[0] == "apt-get"


def test_a_stamp_differs_for_another_lock_python_and_folder() -> None:
    first = {"lock": b"a==1", "python": "3.11", "home": "/usr", "venv": Path("/a/.venv")}
    others = [{"lock": b"a==2"}, {"python": "3.12"}, {"home": "/opt/python"}, {"venv": Path("/b/.venv")}]
    stamps = {stamp(**{**first, **other}) for other in others}
    assert len(stamps | {stamp(**first)}) == 5


class Recorder:
    """Stands for processes: remembers what was asked for, writes what pip would."""

    def __init__(self, *, fail: str = "") -> None:
        self.commands: list[str] = []
        self.fail = fail

    def __call__(self, argv: list[str], *_: object, **__: object) -> Completed:
        self.commands.append(" ".join(argv))
        if self.fail and self.fail in self.commands[-1]:
            raise KeyboardInterrupt
        if "venv" in argv:
            Path(argv[-1]).mkdir(exist_ok=True)
        return Completed(tuple(argv), 0, "")


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    path = tmp_path / "lock"
    path.write_text("a==1")
    return path


def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, fail: str = "") -> list[str]:
    recorder = Recorder(fail=fail)
    monkeypatch.setattr(bootstrap, "follow", recorder)
    try:
        bootstrap.ensure_venv(tmp_path / ".venv", tmp_path / "lock", lambda _: None)
    except KeyboardInterrupt:
        assert fail
    return recorder.commands


def test_an_environment_is_made_once(tmp_path: Path, lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, installed = make(tmp_path, monkeypatch)
    assert made.endswith(f"-m venv --clear {tmp_path}/.venv")
    assert "--require-hashes" in installed
    assert installed.endswith(f"-r {lock}")
    assert make(tmp_path, monkeypatch) == []


def test_an_environment_is_made_anew_when_the_lock_changes(
    tmp_path: Path, lock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, monkeypatch)
    lock.write_text("a==2")
    assert len(make(tmp_path, monkeypatch)) == 2


@pytest.mark.usefixtures("lock")
def test_an_environment_is_made_anew_by_another_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, monkeypatch)
    monkeypatch.setattr(sys, "base_prefix", "/opt/another")
    assert len(make(tmp_path, monkeypatch)) == 2


@pytest.mark.usefixtures("lock")
@pytest.mark.parametrize("moment", ["-m venv", "-m pip"])
def test_an_interrupted_environment_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    make(tmp_path, monkeypatch, fail=moment)
    assert len(make(tmp_path, monkeypatch)) == 2


def packages(monkeypatch: pytest.MonkeyPatch, here: Host, *listings: str) -> tuple[list[str], list[str]]:
    """Ensure g++ and git; return what was run and what was said."""
    found, recorder, said = iter(listings), Recorder(), list[str]()
    monkeypatch.setattr(bootstrap.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(bootstrap, "run", lambda *_, **__: Completed((), 0, next(found)))
    monkeypatch.setattr(bootstrap, "follow", recorder)
    bootstrap.ensure_packages(["g++", "git"], here, said.append)
    return recorder.commands, said


BOTH = "g++ installed\ngit installed\n"


def test_nothing_is_run_or_said_when_all_packages_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert packages(monkeypatch, host(), BOTH) == ([], [])


def test_under_ci_only_missing_packages_are_installed_and_looked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    (update, install), said = packages(monkeypatch, host(sudo=True, ci=True), LISTING, BOTH)
    assert update.startswith("sudo env DEBIAN_FRONTEND=noninteractive")
    assert update.endswith("update")
    assert install.endswith("install -y --no-install-recommends g++")
    assert "sudo apt-get install -y --no-install-recommends g++" in said


def test_packages_that_apt_left_out_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HostNotReady, match=r"apt-get left out g\+\+"):
        packages(monkeypatch, host(root=True, ci=True), LISTING, LISTING)


def test_without_a_terminal_the_apt_line_is_the_next_move(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HostNotReady) as caught:
        packages(monkeypatch, host(root=True), LISTING)
    assert caught.value.next_move == "apt-get install -y --no-install-recommends g++"
    assert caught.value.exit_code == 60


@pytest.mark.parametrize(("answer", "goes_on"), [("", True), ("Y", True), ("yes", True), ("n", False), ("what", False)])
def test_a_terminal_is_asked(monkeypatch: pytest.MonkeyPatch, answer: str, goes_on: bool) -> None:  # noqa: FBT001
    monkeypatch.setattr("builtins.input", lambda _: answer)
    if goes_on:
        assert len(packages(monkeypatch, host(root=True, terminal=True), LISTING, BOTH)[0]) == 2
    else:
        with pytest.raises(HostNotReady):
            packages(monkeypatch, host(root=True, terminal=True), LISTING)


def test_a_host_without_dpkg_is_told_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(bootstrap.shutil, "which", lambda _: None)
    bootstrap.ensure_packages(["g++"], host(ci=True), said.append)
    assert len(said) == 1
    assert "not a Debian host" in said[0]
    assert "g++" in said[0]


def test_debians_python_without_ensurepip_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ensurepip" else object())
    monkeypatch.setattr(sys, "base_prefix", "/usr")
    assert bootstrap.venv_package() == [f"python3.{sys.version_info.minor}-venv"]
    monkeypatch.setattr(sys, "base_prefix", "/opt/python")
    with pytest.raises(HostNotReady, match="is not Debian's Python"):
        bootstrap.venv_package()


def test_the_groups_that_the_makefile_names_exist() -> None:
    groups = read_groups(ROOT / "config" / "packages.toml")
    lines = [line for line in (ROOT / "Makefile").read_text().splitlines() if "core.bootstrap" in line]
    assert lines
    for line in lines:
        names = line.partition("core.bootstrap ")[2].replace("'", "").split()
        assert wanted(groups, possible(names, host(root=True)))


def test_a_system_has_packages_of_its_own_besides(tmp_path: Path) -> None:
    path = tmp_path / "packages.toml"
    path.write_text('tests = ["caddy"]\nlab = ["kmod"]\n[debian]\ntests = ["chromium"]\n')
    assert read_groups(path, "debian") == {"tests": ["caddy", "chromium"], "lab": ["kmod"]}
    assert read_groups(path, "ubuntu") == read_groups(path) == {"tests": ["caddy"], "lab": ["kmod"]}


def test_packages_that_the_lab_asks_for_are_among_those_installed_for_it() -> None:
    installed = read_groups(ROOT / "config" / "packages.toml")["lab"]
    assert set(requirements()) <= {*installed, "util-linux"}, "util-linux is essential on Debian"


@pytest.mark.parametrize("module", ["bootstrap", "errors", "process"])
def test_an_old_python_reads_what_runs_before_the_version_check(module: str) -> None:
    ast.parse((ROOT / "core" / f"{module}.py").read_text(), feature_version=(3, 7))


@pytest.mark.parametrize("module", ["bootstrap", "errors", "process"])
def test_only_the_standard_library_is_needed_before_the_environment_exists(module: str) -> None:
    tree = ast.parse((ROOT / "core" / f"{module}.py").read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    others = {name for name in imported if name.split(".")[0] not in sys.stdlib_module_names}
    assert others <= {"core.errors", "core.process"}


def test_the_lock_holds_every_direct_dependency_with_hashes_and_no_address() -> None:
    text = (ROOT / "requirements-controller.lock").read_text()
    for name in ("fabric==3.2.3", "invoke==2.2.1", "cmake==", "ninja==", "packaging==", "pytest==", "uv==", "ruff=="):
        assert f"\n{name}" in text
    pins = [line for line in text.splitlines() if "==" in line and not line.startswith((" ", "#"))]
    assert all(line.endswith("\\") for line in pins), "a pin without a hash"
    assert "://" not in text
    assert not any(line.startswith("build==") for line in pins), "PyPI's build would hide our package of that name"
