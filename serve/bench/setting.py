"""A way to serve a model, as a search varies it: how it is spread, with which executor, graphs and memory. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from core.config import Profile

Parallel = Literal["one", "replicas", "pipeline", "tensor"]
Executor = Literal["ray", "mp"]
Graphs = Literal["eager", "piecewise", "full"]

GRAPHS: tuple[Graphs, ...] = ("eager", "piecewise", "full")
"""From the safest on: with full graphs some versions of vLLM hang, with piecewise ones none is known to."""
_OF_GRAPHS: dict[Graphs, tuple[str, ...]] = {
    "eager": ("--enforce-eager",),
    "piecewise": ("--compilation-config", '{"cudagraph_mode":"PIECEWISE"}'),
    "full": (),
}
_SWITCHES = ("--enforce-eager",)
_OPTIONS_OF_GRAPHS = ("--compilation-config", "-O")


@dataclass(frozen=True)
class Setting:
    """One way to serve; None leaves a thing as the profile has it."""

    parallel: Parallel
    executor: Executor = "ray"
    graphs: Graphs | None = None
    fraction: float | None = None
    """Of the GPU's memory."""
    batched: int | None = None
    """Most tokens in one step."""

    @property
    def title(self) -> str:
        """The setting for people."""
        spread = {"one": "one node", "replicas": "a replica a node", "pipeline": "pipeline", "tensor": "tensor"}
        words = [spread[self.parallel]]
        words += [self.executor] if self.parallel in ("pipeline", "tensor") else []
        words += [f"{self.graphs} graphs" if self.graphs != "eager" else "eager"] if self.graphs else []
        words += [f"{self.fraction:.2f} of the memory"] if self.fraction is not None else []
        words += [f"{self.batched} tokens a step"] if self.batched is not None else []
        return ", ".join(words)

    @property
    def daring(self) -> tuple[float, int, int]:
        """How much it asks of the memory, and how much of graphs: a safer setting is smaller."""
        return (self.fraction or 0, self.batched or 0, GRAPHS.index(self.graphs) if self.graphs else 0)


def profile_of(base: Profile, setting: Setting, nodes: int, name: str) -> Profile:
    """Return the profile that serves a model in this way."""
    return base.model_copy(
        update={
            "name": name,
            "pipeline_parallel": nodes if setting.parallel == "pipeline" else 1,
            "tensor_parallel": nodes if setting.parallel == "tensor" else 1,
            "executor": setting.executor,
            "flags": flags_of(base.flags, setting),
            "guide": None,
        }
    )


def flags_of(given: Sequence[str], setting: Setting) -> tuple[str, ...]:
    """Return the profile's flags with those of the setting in the place of its own."""
    gone = {
        "--gpu-memory-utilization": setting.fraction is not None,
        "--max-num-batched-tokens": setting.batched is not None,
        **dict.fromkeys((*_SWITCHES, *_OPTIONS_OF_GRAPHS), setting.graphs is not None),
    }
    kept = tuple(_without(given, {name for name, goes in gone.items() if goes}))
    fraction = ("--gpu-memory-utilization", f"{setting.fraction:.2f}") if setting.fraction is not None else ()
    batched = ("--max-num-batched-tokens", str(setting.batched)) if setting.batched is not None else ()
    graphs = _OF_GRAPHS[setting.graphs] if setting.graphs is not None else ()
    return (*kept, *fraction, *batched, *graphs)


def _without(flags: Sequence[str], names: set[str]) -> Iterator[str]:
    """Leave options out, with their values."""
    words = iter(flags)
    for word in words:
        if word.partition("=")[0] not in names:
            yield word
        elif "=" not in word and word not in _SWITCHES:
            next(words, None)
