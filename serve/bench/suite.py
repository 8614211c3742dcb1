"""A suite of tests as data: how many requests of which length, at which rate, and what somebody published of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from core.config import CONFIG, Model, Name, load_model
from core.errors import ConfigError
from core.mistakes import nearest

FOLDER = CONFIG / "suites"
Count = Annotated[int, Field(ge=1)]


class PublishedTest(Model):
    """What somebody published of a test; the names are those of `figures.Figures`."""

    completed: int
    output_throughput: float
    peak_throughput: float
    total_throughput: float
    ttft_mean: float
    tpot_mean: float
    tpot_p99: float


class Published(Model):
    """Where published figures are from, what they were measured on, and those that belong to no test."""

    source: str
    gpu: str
    """The GPU's name as the driver says it: elsewhere these figures say nothing."""
    model: str
    """The name of the model's folder."""
    kv_tokens_one_node: int
    kv_tokens: int
    loaded_gb: float
    """GB of weights on each GPU."""
    memory_gb: tuple[float, ...]
    """GB of GPU memory in use, by node."""
    layers: tuple[str, ...]


class Test(Model):
    """One run of `vllm bench serve`: random prompts of one length, answers of one length."""

    __test__ = False  # pytest: this is no test of ours

    name: Name
    title: str
    prompts: Count
    rate: Annotated[float, Field(gt=0)] | None = None
    """Requests a second; without it all are sent at once."""
    concurrency: Count | None = None
    """Most requests under way; without it there is no limit."""
    input: Count
    """Tokens of each prompt."""
    output: Count
    """Tokens of each answer."""
    published: PublishedTest | None = None

    @property
    def shape(self) -> str:
        """What it sends, for people."""
        rate = f"at {self.rate:g}/s" if self.rate else "at once"
        how = f"{self.concurrency} at a time" if self.concurrency else rate
        return f"{self.prompts} requests {how}, {self.input}/{self.output} tokens"


class Suite(Model):
    """Tests in the order in which they run."""

    name: Name
    description: str
    repeats: Count = 3
    """Times that each test is measured, after one run that is not counted."""
    tests: Annotated[tuple[Test, ...], Field(min_length=1)]
    published: Published | None = None

    @model_validator(mode="after")
    def _tests_differ(self) -> Self:
        names = [test.name for test in self.tests]
        if len(set(names)) < len(names):
            raise ValueError("two tests have the same name")
        return self

    def require_room(self, longest: int | None) -> None:
        """Raise ConfigError where a test asks for longer sequences than the model serves."""
        for test in self.tests:
            if longest is not None and test.input + test.output > longest:
                raise ConfigError(
                    f"the test {test.name} has sequences of {test.input + test.output} tokens, "
                    f"the profile serves up to {longest}",
                    next_move="choose another suite (--suite quick), or a larger --max-model-len in the profile",
                )


def load_suite(name: str) -> Suite:
    """Read `config/suites/NAME.toml`, or the file that a path names. Raises ConfigError."""
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    if not name.endswith(".toml") and ("/" in name or not path.is_file()):
        names = sorted(found.stem for found in FOLDER.glob("*.toml"))
        raise ConfigError(
            f"config/suites/{name}.toml does not exist{nearest(name, names)}",
            next_move=f"use one of: {', '.join(names)}; or give a path that ends in .toml",
        )
    return load_model(Suite, path)
