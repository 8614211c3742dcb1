"""What `invoke facts` asks, and what it says of a node."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from invoke.context import Context

import deploy.tasks
from core.config import Cluster
from core.facts import Captures, load_captures
from core.question import Question
from core.remote import Hosts
from tests.unit.samples import lab_captures, lab_facts, local


def test_what_is_saved_is_enough_to_plan_everything_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Question] = []

    def gather(_: Hosts, __: Cluster, question: Question) -> Captures:
        asked.append(question)
        return lab_captures()

    monkeypatch.setattr(deploy.tasks, "gather", gather)
    deploy.tasks.facts.body(Context(), cluster="local", save=str(tmp_path / "facts.json"))
    (question,) = asked
    assert all((question.whole, question.access, question.inventory, question.wiring))
    assert load_captures(tmp_path / "facts.json") == lab_captures()


def test_a_model_that_arrives_is_not_shown_as_fetched() -> None:
    models = {"/a": {"repository": "owner/one"}, "/b": {"repository": "owner/two", "partial": True}, "/c": {}}
    sheet = deploy.tasks._sheet(local(), replace(lab_facts()["lab-a"], models=models))
    assert "models   owner/one, owner/two (arriving), a damaged one" in sheet
    assert "none fetched" in deploy.tasks._sheet(local(), lab_facts()["lab-a"])
