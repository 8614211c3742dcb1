"""Environments by conda and Pythons that are brought: what is planned, what is refused, and what the hooks do."""

from __future__ import annotations

import io
import itertools
import json
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from core import download, pythons
from core.backend import Backend, Interpreter
from core.config import Cluster, Stack, load_cluster, load_data, load_stack
from core.errors import ConfigError, UnfitNode
from core.facts import NodeFacts
from core.parsers import Taken
from core.plan import Call, Push, Run, Step, Write
from core.process import Completed, run
from core.pythons import Pythons
from deploy import conda, interpreter
from deploy.collect import plan_collect
from deploy.doctor import examine
from deploy.environment import install_steps
from deploy.removal import plan_remove
from deploy.rollout import plan_deploy
from tests.unit.samples import X86, cpu, lab_facts, local, manifest, spark_captures
from wheels.target import common_target, packages_for, python_for

HOME = "/home/spark/miniforge3"
NAME = f"{HOME}/envs/sparkstack"
TARGET = "/opt/sparkstack/current/venv"
MINIFORGE = Pythons(conda=f"{HOME}/bin/conda", seeds={(3, 11): f"{HOME}/envs/own"})
FRESH = lab_facts()["lab-a"]
HEAD = local().head
BROUGHT = Interpreter(
    version="3.12.12", platform="x86_64", url="https://example.org/cpython-3.12.12%2B1.tar.gz", sha256="a" * 64
)


def by_conda(**changes: Any) -> Cluster:
    return local().model_copy(update={"backend": Backend(kind="conda", **changes)})


def bringing(**changes: Any) -> Cluster:
    return local().model_copy(update={"backend": Backend(**changes)})


def with_archive(*minors: str) -> Stack:
    return cpu().model_copy(update={"interpreters": (BROUGHT,), "python": minors or ("3.12",)})


def both(**changes: Any) -> dict[str, NodeFacts]:
    return lab_facts(**changes)


def titles(steps: Sequence[Step]) -> list[str]:
    return [step.title for step in steps]


LOOKED = """\
python\t/usr/bin/python3.11
python\t/usr/bin/python3.11-config
python\t/usr/local/bin/python3.12
python\t/home/spark/.local/share/uv/python/cpython-3.12.1-linux/bin/python3.12
brought\t/opt/sparkstack/python/3.13.1-0123456789/bin/python3.13
conda\t/home/spark/miniforge3/bin/conda
seed\t/home/spark/miniforge3/conda-meta/python-3.12.12-h1_cpython.json
seed\t/home/spark/miniforge3/envs/my env/conda-meta/python-3.11.2-0.json
seed\t/home/spark/miniforge3/envs/other/conda-meta/python-3.12.1-0.json
link\t/home/spark/miniforge3/envs/sparkstack\t/opt/sparkstack/current/venv
"""


def test_what_a_node_has_is_read_the_first_of_a_version_counts() -> None:
    assert pythons.parse(LOOKED) == Pythons(
        found={(3, 11): "/usr/bin/python3.11", (3, 12): "/usr/local/bin/python3.12"},
        brought={"3.13.1-0123456789": "/opt/sparkstack/python/3.13.1-0123456789/bin/python3.13"},
        conda=f"{HOME}/bin/conda",
        seeds={(3, 12): HOME, (3, 11): f"{HOME}/envs/my env"},
        links={NAME: TARGET},
    )
    assert pythons.parse("") == Pythons()
    assert pythons.parse(f"there\t{NAME}\n").taken


@pytest.mark.processes
def test_the_probe_finds_them_and_counts_no_link_as_an_environment(tmp_path: Path) -> None:
    miniforge, root = tmp_path / "miniforge3", tmp_path / "root"
    for path in ("bin/conda", "conda-meta/python-3.12.1-0.json", "envs/own/conda-meta/python-3.11.2-0.json"):
        (miniforge / path).parent.mkdir(parents=True, exist_ok=True)
        (miniforge / path).touch(mode=0o755)
    (miniforge / "envs" / "sparkstack").symlink_to(miniforge / "envs" / "own")
    mine = root / "python" / "3.11.2-x" / "bin" / "python3.11"
    mine.parent.mkdir(parents=True)
    mine.touch(mode=0o755)
    cluster = local().model_copy(update={"root": root, "backend": Backend(kind="conda", miniforge=miniforge)})
    seen = pythons.parse(run(pythons.request(cluster)["pythons"]).out)
    assert seen.conda == str(miniforge / "bin/conda")
    assert seen.seeds == {(3, 12): str(miniforge), (3, 11): str(miniforge / "envs/own")}
    assert seen.links == {str(miniforge / "envs/sparkstack"): str(miniforge / "envs/own")}
    assert seen.brought == {"3.11.2-x": str(mine)}
    assert not seen.taken


class TestWhichPython:
    def test_the_nodes_python3_comes_first_then_the_stacks_order(self) -> None:
        assert python_for(local(), both(), cpu()) == (3, 11)
        found = Pythons(found={(3, 13): "/usr/bin/python3.13"})
        assert python_for(local(), both(python=(3, 9), pythons=found), cpu()) == (3, 13)

    def test_what_all_nodes_have_comes_before_what_has_to_be_brought(self) -> None:
        stack = with_archive("3.12", "3.13")
        found = Pythons(found={(3, 13): "/usr/bin/python3.13"})
        assert python_for(local(), both(pythons=found), stack) == (3, 13)
        one = both() | {"lab-b": replace(both()["lab-b"], pythons=found)}
        assert python_for(local(), one, stack) == (3, 12)
        assert common_target(local(), one, stack).tag == "x86_64-cp312"

    def test_no_archive_is_for_another_architecture(self) -> None:
        assert python_for(local(), both(architecture="aarch64"), with_archive()) is None

    def test_conda_takes_those_that_the_miniforge_of_every_node_has(self) -> None:
        assert python_for(by_conda(), both(pythons=MINIFORGE), cpu()) == (3, 11)
        assert python_for(by_conda(), both(), with_archive()) is None


def test_conda_with_a_python_that_is_brought_is_refused() -> None:
    data = {**local().model_dump(mode="json", exclude={"lab"}), "backend": {"kind": "conda", "python": "brought"}}
    with pytest.raises(ConfigError, match="Python is of the node's Miniforge"):
        load_data(Cluster, Path("x.toml"), data)


class TestBringing:
    wheels = manifest(target=X86.model_copy(update={"python": (3, 12)}))

    def steps(self, cluster: Cluster, seen: NodeFacts) -> tuple[Step, ...]:
        return interpreter.bring_steps(cluster, with_archive(), HEAD, seen, self.wheels)

    def test_a_node_without_that_version_gets_the_stacks(self) -> None:
        folder, push, unpack, take = self.steps(local(), FRESH)
        assert folder.reason == push.reason == "the node has Python 3.11, not 3.12"
        assert isinstance(push, Push)
        assert push.sources[0].parts[-2:] == ("a" * 64, "3.12.12-aaaaaaaaaa.tar.gz")
        assert isinstance(unpack, Run)
        assert unpack.argv[-3:] == (
            "/opt/sparkstack/python/3.12.12-aaaaaaaaaa.tar.gz",
            "a" * 64,
            "/opt/sparkstack/python/3.12.12-aaaaaaaaaa.new",
        )
        assert isinstance(take, Run)
        assert "3.12.12" in take.argv

    def test_its_venv_is_made_of_it(self) -> None:
        steps = install_steps(local(), with_archive(), HEAD, FRESH, self.wheels)
        (make,) = [step for step in steps if step.title == "make the environment"]
        assert isinstance(make, Run)
        assert make.argv[:3] == ("/opt/sparkstack/python/3.12.12-aaaaaaaaaa/bin/python3.12", "-m", "venv")

    def test_a_python_that_is_there_is_used(self) -> None:
        found = replace(FRESH, pythons=Pythons(found={(3, 12): "/usr/bin/python3.12"}))
        assert self.steps(local(), found) == ()
        (make,) = [
            step
            for step in install_steps(local(), with_archive(), HEAD, found, self.wheels)
            if step.title == "make the environment"
        ]
        assert isinstance(make, Run)
        assert make.argv[0] == "/usr/bin/python3.12"
        steps = self.steps(bringing(python="brought"), found)
        assert {step.reason for step in steps[:2]} == {"the cluster's file says so"}

    def test_what_was_brought_before_is_not_brought_again(self) -> None:
        there = Pythons(brought={BROUGHT.folder: f"/opt/sparkstack/python/{BROUGHT.folder}/bin/python3.12"})
        assert self.steps(local(), replace(FRESH, pythons=there)) == ()

    def test_the_archive_is_fetched_once_for_all_nodes(self) -> None:
        (step,) = interpreter.fetch_steps(local(), with_archive(), both(), self.wheels)
        assert isinstance(step, Call)
        assert BROUGHT.url in step.shown
        assert not list(interpreter.fetch_steps(local(), cpu(), both(), manifest()))

    @pytest.mark.parametrize(
        "there",
        [
            {"cpython-old-name.tar.gz": b"archive"},
            {"{}.tar.gz": b"archive"},
            {"cpython-old-name.tar.gz": b"archive", "{}.tar.gz": b"archive"},
            {"0-old-name.tar.gz": b"archive", "{}.tar.gz": b"archive"},
            {"0-old-name.tar.gz": b"archive", "{}.tar.gz": b"damaged"},
        ],
    )
    def test_an_archive_that_had_another_name_in_the_store_is_found_under_the_one_that_is_pushed(
        self, there: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        digest = sha256(b"archive").hexdigest()
        one = BROUGHT.model_copy(update={"sha256": digest})
        monkeypatch.setattr(interpreter, "WORK", tmp_path)
        monkeypatch.setattr(download, "fetched", partial(download.fetched, work=tmp_path))
        folder = tmp_path / "files" / digest
        folder.mkdir(parents=True)
        for name, content in there.items():
            (folder / name.format(one.folder)).write_bytes(content)
        stack = with_archive().model_copy(update={"interpreters": (one,)})
        for _ in range(2):
            (step,) = interpreter.fetch_steps(local(), stack, both(), self.wheels)
            assert isinstance(step, Call)
            step.action(lambda _: None)
            assert interpreter.stored(one).read_bytes() == b"archive"

    def test_what_the_node_says_of_an_archive_is_told(self) -> None:
        unpack = self.steps(local(), FRESH)[2]
        assert isinstance(unpack, Run)
        assert unpack.failure is not None
        error = unpack.failure(Completed(argv=(), code=1, out="refused: 'etc' is not below python/\n", err=""))
        assert isinstance(error, UnfitNode)
        assert error.cause == "the archive of Python 3.12.12 is not unpacked: 'etc' is not below python/"


class TestConda:
    wheels = manifest().on(by_conda())
    place = f"/opt/sparkstack/releases/{wheels.release}"
    seen = replace(FRESH, pythons=MINIFORGE)

    def test_its_release_is_another_one(self) -> None:
        assert self.wheels.release == f"{manifest().release}-conda"
        assert self.wheels.on(local()).release == manifest().release

    def test_the_environment_is_made_offline_of_what_an_environment_of_the_owner_holds(self) -> None:
        steps = install_steps(by_conda(), cpu(), HEAD, self.seen, self.wheels)
        (listed,) = [step for step in steps if step.title == f"list what Python is made of in {HOME}/envs/own"]
        (make,) = [step for step in steps if step.title == "make the environment with the node's Miniforge"]
        assert isinstance(listed, Run)
        assert isinstance(make, Run)
        assert listed.argv[-2:] == (f"{HOME}/envs/own", f"{self.place}/conda.txt")
        assert make.argv[0] == "env"
        assert "CONDA_REGISTER_ENVS=false" in make.argv
        for option in ("--offline", "--no-default-packages", f"{self.place}/venv"):
            assert option in make.argv
        (install,) = [step for step in steps if step.title == "install 3 wheels"]
        assert isinstance(install, Run)
        assert {"--require-hashes", f"--python={self.place}/venv"} <= set(install.argv)

    @pytest.mark.processes
    def test_the_list_is_of_python_and_what_it_needs_and_nothing_else(self, tmp_path: Path) -> None:
        records = {
            "python": ["openssl >=3", "tzdata", "__glibc >=2.17"],
            "openssl": ["ca-certificates"],
            "ca-certificates": [],
            "tzdata": [],
            "numpy": ["python >=3.12"],
        }
        (tmp_path / "conda-meta").mkdir()
        for name, depends in records.items():
            record = {"name": name, "url": f"https://x/{name}.conda", "md5": name, "depends": depends}
            (tmp_path / "conda-meta" / f"{name}-1-0.json").write_text(json.dumps(record))
        steps = conda.make_steps(by_conda(), cpu(), HEAD, self.seen, self.wheels)
        assert isinstance(steps[0], Run)
        run([sys.executable, "-I", "-c", steps[0].argv[3], str(tmp_path), str(tmp_path / "list")])
        first, *lines = (tmp_path / "list").read_text().splitlines()
        assert first == "@EXPLICIT"
        assert set(lines) == {f"https://x/{name}.conda#{name}" for name in records.keys() - {"numpy"}}

    def test_the_name_leads_to_the_release_in_use_and_is_given_once(self) -> None:
        (step,) = conda.name_steps(by_conda(), HEAD, self.seen)
        assert isinstance(step, Run)
        assert step.argv[-2:] == (TARGET, NAME)
        named = replace(self.seen, pythons=replace(MINIFORGE, links={NAME: TARGET}))
        assert conda.name_steps(by_conda(), HEAD, named) == ()

    @pytest.mark.parametrize("cluster", [local(), by_conda(name="spark")])
    def test_a_name_that_the_clusters_file_names_no_more_is_taken_away(self, cluster: Cluster) -> None:
        links = {NAME: TARGET, f"{HOME}/envs/owners": "/elsewhere"}
        steps = conda.name_steps(cluster, HEAD, replace(FRESH, pythons=replace(MINIFORGE, links=links)))
        assert titles(steps)[0] == f"take the name {NAME} away"
        assert not [step for step in steps if "owners" in step.title]

    def test_hooks_are_written_again_when_the_stacks_environment_changed(self) -> None:
        text = conda.hook_text(cpu())
        written = replace(self.seen, hooks={self.wheels.release: text})
        assert conda.hook_steps(by_conda(), cpu(), HEAD, written, self.wheels) == ()
        old = replace(self.seen, hooks={self.wheels.release: text.replace("OMP", "OLD")})
        back, there = conda.hook_steps(by_conda(), cpu(), HEAD, old, self.wheels)
        assert isinstance(back, Write)
        assert isinstance(there, Write)
        assert str(back.path) == f"{self.place}/venv/etc/conda/deactivate.d/sparkstack.sh"
        assert (str(there.path), there.content) == (f"{self.place}/venv/etc/conda/activate.d/sparkstack.sh", text)
        assert conda.hook_steps(local(), cpu(), HEAD, FRESH, manifest()) == ()

    def test_a_deployment_that_is_done_plans_nothing(self) -> None:
        seen = both(
            pythons=replace(MINIFORGE, links={NAME: TARGET}),
            hooks={self.wheels.release: conda.hook_text(cpu())},
            releases={self.wheels.release: {"stack": "cpu"}},
            current=self.wheels.release,
            history=(Taken(self.wheels.release, "now", "owner"),),
            root_owner="spark",
            wheels={wheel.filename: wheel.size for wheel in self.wheels.wheels},
        )
        assert plan_deploy(by_conda(), cpu(), self.wheels, seen).empty


REFUSED = [
    (MINIFORGE, [], "nothing is in its way"),
    (replace(MINIFORGE, links={NAME: TARGET}), [], "it is ours"),
    (replace(MINIFORGE, taken=True), ["is not ours"], "an environment of the owner's"),
    (replace(MINIFORGE, links={NAME: "/elsewhere"}), ["is not ours"], "a link of the owner's"),
    (Pythons(), ["no environment in", "no Miniforge is in"], "nothing is there"),
    (Pythons(conda="x", seeds={(3, 9): HOME}), ["has a Python (there are 3.9), the stack cpu"], "another Python"),
]


@pytest.mark.parametrize(("seen", "says", "_"), REFUSED, ids=[row[2] for row in REFUSED])
def test_what_is_in_condas_way_is_found(seen: Pythons, says: list[str], _: str) -> None:
    found = [one for one in examine(by_conda(), cpu(), both(pythons=seen), None) if one.node == "lab-a"]
    assert len(found) == len(says)
    assert all(text in one.cause for text, one in zip(says, found, strict=True))


def test_a_removal_takes_the_name_away_and_no_other() -> None:
    links = {NAME: TARGET, f"{HOME}/envs/owners": "/elsewhere"}
    seen = both(pythons=replace(MINIFORGE, links=links), entries=frozenset({"releases", "python"}), root_owner="spark")
    steps = [step for stage in plan_remove(local(), seen).stages for step in stage.steps if step.node == "lab-a"]
    assert titles(steps)[:2] == [f"take the name {NAME} away", "remove python, releases in /opt/sparkstack"]
    assert not [step for step in steps if "owners" in step.title]


def test_a_python_that_no_release_was_made_of_is_collected() -> None:
    paths = {name: f"/opt/sparkstack/python/{name}/bin/python3.12" for name in ("old", "used")}
    seen = both(pythons=Pythons(brought=paths), releases={"cpu-1": {"python": paths["used"]}}, current="cpu-1")
    steps = [step for stage in plan_collect(local(), seen).stages for step in stage.steps if "Python" in step.title]
    assert [step.argv[-1] for step in steps if isinstance(step, Run)] == ["/opt/sparkstack/python/old"] * 2


@pytest.mark.parametrize("use", ["in use", "served"])
def test_the_python_of_a_release_whose_record_is_gone_stays_while_it_is_in_use_or_served(use: str) -> None:
    paths = {name: f"/opt/sparkstack/python/{name}/bin/python3.12" for name in ("old", "used")}
    unit = f"ExecStart=/opt/sparkstack/releases/{'cpu-1' if use == 'served' else 'cpu-2'}/venv/bin/ray"
    current = "cpu-1" if use == "in use" else "cpu-2"
    seen = both(
        pythons=Pythons(brought=paths),
        partial=frozenset({"cpu-1"}),
        releases={"cpu-2": {"python": "python3"}},
        current=current,
        files={"/etc/systemd/system/x.service": unit},
    )
    assert not [title for title in titles(list(plan_collect(local(), seen).steps)) if "Python" in title]
    left = both(pythons=Pythons(brought=paths), partial=frozenset({"cpu-1"}))
    assert "remove 2 Pythons" in titles(list(plan_collect(local(), left).steps)), "an unfinished one needs none"


NEEDED = Pythons(found={(3, 12): "/usr/bin/python3.12"})
HEADERS: list[tuple[Cluster, dict[str, Any], bool, str]] = [
    (local(), {"python": (3, 12)}, True, "Debian's python3"),
    (local(), {"pythons": NEEDED}, True, "another Python of Debian's"),
    (local(), {"pythons": Pythons(found={(3, 12): "/usr/local/bin/python3.12"})}, False, "the owner's own"),
    (local(), {"pythons": Pythons(found={(3, 12): "/home/spark/.local/bin/python3.12"})}, False, "uv's"),
    (local(), {}, False, "one that is brought"),
    (bringing(python="brought"), {"python": (3, 12)}, False, "one that is brought in any case"),
    (by_conda(), {"pythons": replace(MINIFORGE, seeds={(3, 12): HOME}), "python": (3, 12)}, False, "conda's"),
]


@pytest.mark.parametrize(("cluster", "changes", "needed", "_"), HEADERS, ids=[row[3] for row in HEADERS])
def test_headers_are_asked_of_debian_for_a_python_of_debians_only(
    cluster: Cluster, changes: dict[str, Any], needed: object, _: str
) -> None:
    stack = with_archive().model_copy(update={"packages": ("gcc", "python3.12-dev", "python3-dev-tools")})
    wanted = ("gcc", "python3.12-dev", "python3-dev-tools") if needed else ("gcc", "python3-dev-tools")
    seen = both(**changes, packages=frozenset())
    assert packages_for(cluster, stack, seen["lab-a"]) == wanted
    missing = [one.cause for one in examine(cluster, stack, seen, None) if "packages" in one.cause]
    assert missing == [f"Debian packages are missing: {' '.join(sorted(wanted))}"] * 2


@pytest.mark.parametrize("name", ["guide", "current"])
def test_a_shipped_stack_brings_its_python_to_a_node_that_has_none_of_that_version(name: str) -> None:
    cluster, stack = load_cluster("spark"), load_stack(name)
    own = {"python": (3, 10), "pythons": Pythons(), "packages": frozenset(stack.packages) - {"python3.12-dev"}}
    seen = {node: replace(one, **own) for node, one in spark_captures().parsed().items()}
    assert list(examine(cluster, stack, seen, None)) == []


def test_a_cluster_that_wants_its_python_brought_is_told_when_the_stack_has_none_to_bring() -> None:
    move = 'name an archive under [[interpreters]] of the stack, or take python = "brought" out of the cluster\'s file'
    found = [one for one in examine(bringing(python="brought"), cpu(), both(), None) if one.node == "lab-a"]
    assert [(one.cause, one.next_move) for one in found] == [("the stack cpu brings no Python for x86_64", move)]


SHELLS = [["sh"], ["bash", "--norc"], ["bash", "--norc", "-eu"]]


@pytest.mark.processes
@pytest.mark.parametrize("shell", SHELLS, ids=" ".join)
class TestHooks:
    """The hooks, read by real shells as `conda activate` and `conda deactivate` read them."""

    stack = cpu().model_copy(update={"environment": {"PLAIN": "1", "ODD": 'it\'s "$HOME" `x` \\ ü', "EMPTY": ""}})
    show = 'printf "%s|" "${PLAIN-unset}" "${ODD-unset}" "${EMPTY-unset}"'

    def shown(self, shell: list[str], tmp_path: Path, *lines: str) -> list[str]:
        (tmp_path / "on").write_text(conda.hook_text(self.stack), encoding="utf-8")
        (tmp_path / "off").write_text(conda._UNDO, encoding="utf-8")
        out = run([*shell, "-c", "\n".join([f"cd {tmp_path}", *lines])]).out
        return out.split("|")[:-1]

    def test_variables_are_set_and_taken_back(self, shell: list[str], tmp_path: Path) -> None:
        found = self.shown(shell, tmp_path, ". ./on", self.show, ". ./off", self.show, "env | grep SPARKSTACK || :")
        assert found[:3] == ["1", 'it\'s "$HOME" `x` \\ ü', ""]
        assert found[3:] == ["unset"] * 3

    def test_what_was_set_before_comes_back(self, shell: list[str], tmp_path: Path) -> None:
        before = ["export PLAIN='a \"b\" $c' EMPTY=full", ". ./on", self.show, ". ./off", self.show]
        assert self.shown(shell, tmp_path, *before)[3:] == ['a "b" $c', "unset", "full"]

    def test_a_child_shell_can_deactivate_too(self, shell: list[str], tmp_path: Path) -> None:
        lines = (". ./on", f"{shell[0]} -c '. ./off; {self.show}'")
        assert self.shown(shell, tmp_path, *lines) == ["unset"] * 3

    def test_to_deactivate_what_was_not_activated_changes_nothing(self, shell: list[str], tmp_path: Path) -> None:
        assert self.shown(shell, tmp_path, "PLAIN=mine", ". ./off", self.show) == ["mine", "unset", "unset"]


def archive(path: Path, *members: tuple[str, dict[str, Any], bytes]) -> str:
    """Write an archive of these members; return its hash."""
    with tarfile.open(path, "w:gz") as tar:
        for name, fields, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in fields.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(content))
    return sha256(path.read_bytes()).hexdigest()


def unpacked(tmp_path: Path, digest: str) -> Completed:
    argv = [sys.executable, "-I", str(interpreter.SCRIPT), str(tmp_path / "a"), digest, str(tmp_path / "out")]
    return run(argv, check=False)


FILE = ("python/bin/python3.12", {"mode": 0o4755}, b"binary")
HOSTILE: list[tuple[str, list[tuple[str, dict[str, Any], bytes]], str]] = [
    ("a path that leads out", [("python/../../x", {}, b"")], "is not below python/"),
    ("an absolute path", [("/python/x", {}, b"")], "is not below python/"),
    ("another top", [("etc/passwd", {}, b"")], "is not below python/"),
    ("a link that leads out", [("python/x", {"type": tarfile.SYMTYPE, "linkname": "../y"}, b"")], "is not below"),
    ("an absolute link", [("python/x", {"type": tarfile.SYMTYPE, "linkname": "/etc"}, b"")], "leads out of it"),
    (
        "a file through a link",
        [("python/x", {"type": tarfile.SYMTYPE, "linkname": "bin"}, b""), ("python/x/y", {}, b"")],
        "which is no folder",
    ),
    ("a device", [("python/x", {"type": tarfile.CHRTYPE}, b"")], "neither file, folder nor link"),
    ("a name twice", [FILE, FILE], "is in it twice"),
    ("a hard link to nothing", [("python/x", {"type": tarfile.LNKTYPE, "linkname": "python/y"}, b"")], "of no file"),
    ("a hard link out", [("python/x", {"type": tarfile.LNKTYPE, "linkname": "../etc"}, b"")], "is not below python/"),
]


def symlink(name: str, leads: str) -> tuple[str, dict[str, Any], bytes]:
    return name, {"type": tarfile.SYMTYPE, "linkname": leads}, b""


DEEP: tuple[str, dict[str, Any], bytes] = ("python/a/b/c", {"type": tarfile.DIRTYPE}, b"")
AROUND: list[tuple[str, list[tuple[str, dict[str, Any], bytes]], str]] = [
    (
        "one above the folder",
        [DEEP, symlink("python/a/b/up", "../.."), symlink("python/a/b/x", "up/../secret")],
        "a/b/x",
    ),
    ("the link stands behind", [DEEP, symlink("python/x", "a/b/up/../secret"), symlink("python/a/b/up", "../..")], "x"),
    (
        "through two links",
        [DEEP, symlink("python/a/up", ".."), symlink("python/a/b/c/y", "../../up"), symlink("python/a/z", "b/c/y/..")],
        "a/z",
    ),
    (
        "behind an empty part",
        [DEEP, symlink("python/a/up", ".."), symlink("python/a/b/x", "../up//../secret")],
        "a/b/x",
    ),
    ("behind a dot", [DEEP, symlink("python/a/up", ".."), symlink("python/a/b/x", ".././up/../secret")], "a/b/x"),
]


@pytest.mark.processes
class TestUnpacking:
    def test_files_and_links_are_unpacked_without_special_bits(self, tmp_path: Path) -> None:
        digest = archive(
            tmp_path / "a",
            ("python/bin", {"type": tarfile.DIRTYPE, "mode": 0o700}, b""),
            ("python/bin/python3", {"type": tarfile.SYMTYPE, "linkname": "python3.12"}, b""),
            FILE,
            ("python/lib/x.py", {"mode": 0o666}, b"text"),
            ("python/lib/y.py", {"type": tarfile.LNKTYPE, "linkname": "python/lib/x.py"}, b""),
        )
        assert unpacked(tmp_path, digest).code == 0
        out = tmp_path / "out"
        assert (out / "bin/python3").read_bytes() == b"binary"
        assert (out / "bin/python3.12").stat().st_mode & 0o7777 == 0o755
        assert (out / "lib/x.py").stat().st_mode & 0o7777 == 0o644
        assert (out / "lib/y.py").samefile(out / "lib/x.py")

    @pytest.mark.parametrize(("members", "says"), [row[1:] for row in HOSTILE], ids=[row[0] for row in HOSTILE])
    def test_nothing_of_a_hostile_archive_is_unpacked(
        self, members: list[tuple[str, dict[str, Any], bytes]], says: str, tmp_path: Path
    ) -> None:
        done = unpacked(tmp_path, archive(tmp_path / "a", *members))
        assert done.code == 1
        assert says in done.out
        assert {path.name for path in tmp_path.iterdir()} == {"a"}

    def test_a_link_may_lead_up_as_far_as_the_folder_and_through_another_link(self, tmp_path: Path) -> None:
        members = [
            FILE,
            symlink("python/bin/python3", "python3.12"),
            symlink("python/share/man/n/x.1", "../../../bin/python3.12"),
            symlink("python/share/up", ".."),
            symlink("python/top", "share/up/bin/./python3"),
        ]
        assert unpacked(tmp_path, archive(tmp_path / "a", *members)).code == 0
        out = tmp_path / "out"
        assert (out / "share/man/n/x.1").read_bytes() == b"binary"
        assert (out / "top").resolve() == out / "bin/python3.12"

    @pytest.mark.parametrize(("members", "leads"), [row[1:] for row in AROUND], ids=[row[0] for row in AROUND])
    def test_a_link_that_goes_up_behind_another_link_is_refused_for_it_leads_out(
        self, members: list[tuple[str, dict[str, Any], bytes]], leads: str, tmp_path: Path
    ) -> None:
        """The links themselves, as tar would make them, show that each of these archives is one that leads out."""
        digest = archive(tmp_path / "a", *members)
        (tmp_path / "secret").write_text("not of the archive")
        made = tmp_path / "made"
        for name, fields, _ in members:
            path = made / name.removeprefix("python/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(fields["linkname"]) if "linkname" in fields else path.mkdir()
        assert not (made / leads).resolve().is_relative_to(made)
        done = unpacked(tmp_path, digest)
        assert (done.code, "leads out of it" in done.out) == (1, True)
        assert {path.name for path in tmp_path.iterdir()} == {"a", "secret", "made"}

    def test_another_file_is_refused_before_it_is_opened(self, tmp_path: Path) -> None:
        archive(tmp_path / "a", FILE)
        done = unpacked(tmp_path, "0" * 64)
        assert (done.code, "named is 000" in done.out) == (1, True)

    def test_an_archive_that_is_cut_off_is_refused(self, tmp_path: Path) -> None:
        archive(tmp_path / "a", ("python/x", {}, bytes(itertools.islice(itertools.cycle(range(251)), 100_000))))
        cut = (tmp_path / "a").read_bytes()[:-200]
        (tmp_path / "a").write_bytes(cut)
        done = unpacked(tmp_path, sha256(cut).hexdigest())
        assert (done.code, done.out[:8]) == (1, "refused:")
