"""A report is made of what went wrong: it comes about whatever is damaged, cannot be read or is not there."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from core.errors import CommandFailed, NodeUnreachable
from core.facts import Captures
from core.process import Completed
from core.question import Question
from deploy.care import report
from tests.unit.samples import cpu, lab_captures, local, tiny


class Nodes(dict[str, Any]):
    """The nodes of a cluster, of which every one prints the same."""

    def __init__(self, _: object) -> None:
        super().__init__()

    def __enter__(self) -> Nodes:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __missing__(self, _: str) -> Nodes:
        return self

    def run(self, argv: tuple[str, ...], **_: Any) -> Completed:
        return Completed(argv, 0, "a line\n")


@pytest.fixture
def questions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Question]:
    """Give a host without git and nodes of which one cannot be read; gives what these were asked."""
    asked: list[Question] = []
    nodes = {**lab_captures().nodes}
    nodes["lab-b"] = {**nodes["lab-b"], "cores": {"code": 0, "out": "many"}}

    def gather_each(_: object, __: object, question: Question) -> tuple[Captures, dict[str, NodeUnreachable]]:
        asked.append(question)
        return Captures(nodes), {}

    def no_git(argv: list[str], **_: Any) -> Completed:
        raise CommandFailed(f"{argv[0]} cannot be started", next_move="install it")

    monkeypatch.setattr(report, "gather_each", gather_each)
    monkeypatch.setattr(report, "Hosts", Nodes)
    monkeypatch.setattr(report, "WORK", tmp_path / "work")
    monkeypatch.setattr(report, "DIST", tmp_path / "dist")
    monkeypatch.setattr(report.process, "run", no_git)
    return asked


def made(tmp_path: Path) -> dict[str, str]:
    found = report.make(local(), cpu(), tiny(), tmp_path / "r.tar.gz", private=False, say=lambda _: None)
    with tarfile.open(found.path) as archive:
        return {
            one.name.partition("/")[2]: file.read().decode() for one in archive if (file := archive.extractfile(one))
        }


def test_a_node_that_cannot_be_read_is_named_and_the_others_are_judged(
    questions: list[Question], tmp_path: Path
) -> None:
    texts = made(tmp_path)
    assert "lab-b: the fact 'cores' cannot be read" in texts["doctor.txt"]
    assert "lab-a: 4.4 GiB of 5.0 GiB available" in texts["doctor.txt"]
    assert json.loads(texts["doctor.json"])["silent"] == ["lab-b"]
    assert json.loads(texts["facts.json"])["nodes"]["lab-b"]["cores"]["out"] == "many"
    assert [(one.whole, one.wiring) for one in questions] == [(True, True)]


@pytest.mark.usefixtures("questions")
def test_without_git_the_commit_is_not_known(tmp_path: Path) -> None:
    versions = json.loads(made(tmp_path)["versions.json"])
    assert (versions["commit"], versions["changed"]) == (None, [])


@pytest.mark.usefixtures("questions")
@pytest.mark.parametrize("text", ["{", "", "[" * 50_000, '{"a": "\x00"'])
def test_a_manifest_that_is_damaged_is_in_it_as_it_is(text: str, tmp_path: Path) -> None:
    folder = tmp_path / "dist" / "cpu" / "x86_64-cp311"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(text)
    assert made(tmp_path)["dist/x86_64-cp311/manifest.json"] == text
