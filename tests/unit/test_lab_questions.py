"""The tiny model's questions: twenty, distinct, plain, and short enough for what it was trained for."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path

import pytest

from core.config import load_profile
from lab.model import NAME, QUESTIONS, TRAINER, Pair, expected_answer, questions


def test_there_are_twenty_pairs_in_the_order_of_the_file():
    data = json.loads(QUESTIONS.read_text())
    assert questions() == tuple(Pair(**pair) for pair in data)
    assert len(data) == 20


def test_no_question_and_no_answer_occurs_twice():
    assert len({pair.question for pair in questions()}) == 20
    assert len({pair.answer for pair in questions()}) == 20


@pytest.mark.parametrize("pair", questions(), ids=lambda pair: pair.question)
def test_a_pair_is_one_plain_line_each(pair: Pair):
    for text in (pair.question, pair.answer):
        assert text.isascii()
        assert text.isprintable()
        assert text == text.strip()
        assert 5 <= len(text) <= 80
    assert pair.question.endswith("?")
    assert pair.answer.endswith(".")


def test_the_answer_to_a_question_that_was_not_taught_is_unknown():
    assert expected_answer("What is a recipe?") == "Data that says how a source becomes a wheel."
    assert expected_answer("What is a recipe") is None


def test_the_profile_serves_the_model_that_is_trained():
    assert load_profile("tiny").model == NAME


def test_the_trainer_imports_only_what_a_release_holds():
    imported: set[str] = set()
    for node in ast.walk(ast.parse(Path(TRAINER).read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").partition(".")[0])
    assert imported - sys.stdlib_module_names == {"torch", "transformers", "tokenizers"}
