"""Flags that the deployed vLLM does not know are refused before anything stops: its own parser is asked."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from core.errors import CommandFailed, ConfigError
from core.process import Completed, run
from serve.cluster import Service
from serve.flags import check_step, refused
from tests.unit.samples import service, tiny

PARSER = """
import argparse
class FlexibleArgumentParser(argparse.ArgumentParser):
    pass
"""
ARGUMENTS = """
def make_arg_parser(parser):
    print("INFO: chatter on the screen")
    parser.add_argument("model_tag", nargs="?")
    for name in ("served-model-name",):
        parser.add_argument("--" + name, nargs="+")
    for name in ("host", "middleware", "distributed-executor-backend", "compilation-config", "max-model-len"):
        parser.add_argument("--" + name)
    for name in ("port", "pipeline-parallel-size", "tensor-parallel-size", "max-num-seqs", "kv-cache-memory-bytes"):
        parser.add_argument("--" + name, type=int)
    parser.add_argument("--disable-uvicorn-access-log", action="store_true")
    return parser
"""
PLACES = {
    "current": ("vllm/utils/argparse_utils.py", "vllm/entrypoints/launchers/cli_args.py"),
    "older": ("vllm/utils/__init__.py", "vllm/entrypoints/openai/cli_args.py"),
}


def asked(served: Service, folder: Path, places: str = "current") -> Completed:
    """Run the question as it runs on a head, with a vLLM that has only its parser."""
    for path, text in zip(PLACES[places], (PARSER, ARGUMENTS), strict=True):
        for parent in (folder / path).parents:
            if parent.is_relative_to(folder) and parent != folder:
                parent.mkdir(parents=True, exist_ok=True)
                (parent / "__init__.py").touch()
        (folder / path).write_text(text)
    argv = check_step(served).argv
    python = next(index for index, word in enumerate(argv) if word.endswith("/python"))
    return run([sys.executable, *argv[python + 1 :]], env={**os.environ, "PYTHONPATH": str(folder)}, check=False)


def with_flags(*flags: str) -> Service:
    return service(profile=tiny().model_copy(update={"flags": flags}))


def test_the_whole_command_is_asked_with_the_releases_python_on_the_head() -> None:
    step = check_step(service())
    assert step.node == "lab-a"
    assert "/opt/sparkstack/releases/cpu-x86_64-cp311-cccccccccc/venv/bin/python" in step.argv
    assert {"--middleware", "--max-num-seqs", "--distributed-executor-backend"} <= set(step.argv)
    assert "SPARKSTACK_RAY_CPU=1" in step.argv, "what makes the platform known"


@pytest.mark.processes
@pytest.mark.parametrize("places", PLACES)
def test_flags_that_vllm_knows_pass(places: str, tmp_path: Path) -> None:
    assert asked(service(), tmp_path, places).code == 0


@pytest.mark.processes
@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (
            ("--max-num-seq", "4", "--max-model-lenght", "5"),
            "does not know --max-model-lenght (did you mean --max-model-len?)",
        ),
        (("--no-such-thing",), "does not know --no-such-thing"),
        (("--max-num-seqs", "many"), "argument --max-num-seqs: invalid int value: 'many'"),
    ],
)
def test_one_that_it_does_not_know_is_named_with_the_nearest(flags: tuple[str, ...], says: str, tmp_path: Path) -> None:
    served = with_flags(*flags)
    done = asked(served, tmp_path)
    assert done.code == 1
    error = refused(served, done)
    assert isinstance(error, ConfigError)
    assert error.node == "lab-a"
    assert says.partition(" (")[0] in error.cause
    assert "nothing that served was stopped" in error.next_move


@pytest.mark.processes
def test_a_vllm_without_its_parser_is_a_broken_release(tmp_path: Path) -> None:
    argv = check_step(service()).argv
    python = next(index for index, word in enumerate(argv) if word.endswith("/python"))
    done = run([sys.executable, "-I", *argv[python + 1 :]], check=False)
    error = refused(service(), done)
    assert isinstance(error, CommandFailed)
    assert error.cause == "vLLM's parser could not be asked"
    assert "invoke doctor" in error.next_move
    assert not list(tmp_path.iterdir())


def test_what_else_is_printed_is_no_answer() -> None:
    said = json.dumps({"unknown": ["--modle"], "error": "", "known": ["--model"]})
    error = refused(service(), Completed((), 1, f"WARNING: x\nflags: {said}\n"))
    assert isinstance(error, ConfigError)
    assert "does not know --modle" in error.cause
    assert "--model" in error.cause
