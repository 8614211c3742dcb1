"""The tiny model's twenty questions, and what it must answer.

`lab/train.py` teaches them to a model on a node; a demo and the tests ask them again through the API. Exact text at
temperature 0 proves that every layer on every node took part: one wrong layer and the text is another.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import TypeAdapter

from core.config import Model

NAME = "sparkstack-tiny"
QUESTIONS = Path(__file__).with_name("questions.json")
TRAINER = Path(__file__).with_name("train.py")
"""Runs inside a deployed environment: needs torch, transformers, tokenizers and QUESTIONS, nothing of this suite."""


class Pair(Model):
    """A question and its one right answer, both plain ASCII."""

    question: str
    answer: str


def questions() -> tuple[Pair, ...]:
    """Return the twenty pairs, in the order of the file."""
    return TypeAdapter(tuple[Pair, ...]).validate_json(QUESTIONS.read_bytes())


def expected_answer(question: str) -> str | None:
    """Return what the tiny model answers to ``question``, None when it was not taught that one."""
    return {pair.question: pair.answer for pair in questions()}.get(question)
