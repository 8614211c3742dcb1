"""What one run of `vllm bench serve` measured, out of the JSON that it saves. Pure.

Times are in milliseconds, throughputs in tokens a second, durations in seconds. Versions of vLLM differ in what they
save: a figure that is not there is None.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError

from core.config import Model
from core.errors import FactsError


def _number(value: Any) -> Any:
    """None for what is no number: a run without a single answer has NaN for its times."""
    return None if isinstance(value, float) and value != value else value  # noqa: PLR0124 - NaN is not itself


Maybe = Annotated[float | None, BeforeValidator(_number)]


class Figures(Model):
    """The figures of one run."""

    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True)

    completed: int
    failed: int = 0
    duration: float
    input_tokens: int = Field(alias="total_input_tokens")
    output_tokens: int = Field(alias="total_output_tokens")
    output_throughput: float
    total_throughput: float = Field(alias="total_token_throughput")
    peak_throughput: Maybe = Field(None, alias="max_output_tokens_per_s")
    peak_requests: Maybe = Field(None, alias="max_concurrent_requests")
    ttft_mean: Maybe = Field(None, alias="mean_ttft_ms")
    ttft_median: Maybe = Field(None, alias="median_ttft_ms")
    ttft_p99: Maybe = Field(None, alias="p99_ttft_ms")
    tpot_mean: Maybe = Field(None, alias="mean_tpot_ms")
    tpot_median: Maybe = Field(None, alias="median_tpot_ms")
    tpot_p99: Maybe = Field(None, alias="p99_tpot_ms")
    itl_mean: Maybe = Field(None, alias="mean_itl_ms")
    itl_p99: Maybe = Field(None, alias="p99_itl_ms")

    @property
    def in_flight(self) -> float:
        """Requests that were under way on average: what all of them took, over the time that it took (Little's law)."""
        if not self.completed or not self.duration:
            return 0.0
        steps = self.output_tokens / self.completed - 1
        each = ((self.ttft_mean or 0) + (self.tpot_mean or 0) * steps) / 1000
        return self.completed * each / self.duration


@dataclass(frozen=True)
class Metric:
    """A figure as people read it, and whether more of it is better."""

    name: str
    label: str
    unit: str
    more_is_better: bool = False
    gate: bool = False
    """Whether a worse one fails a comparison."""


METRICS = (
    Metric("output_throughput", "output throughput", "tok/s", more_is_better=True, gate=True),
    Metric("peak_throughput", "peak throughput", "tok/s", more_is_better=True),
    Metric("total_throughput", "total throughput", "tok/s", more_is_better=True),
    Metric("ttft_mean", "mean TTFT", "ms", gate=True),
    Metric("tpot_mean", "mean TPOT", "ms", gate=True),
    Metric("tpot_p99", "P99 TPOT", "ms"),
)
"""The rows of the guide's tables, in its order."""


def parse(text: str, node: str) -> Figures:
    """Parse the JSON that `vllm bench serve --save-result` wrote on ``node``. Raises FactsError."""
    try:
        return Figures.model_validate(json.loads(text))
    except (ValueError, ValidationError) as error:
        raise FactsError(
            "vLLM's benchmark saved something that cannot be read",
            node=node,
            next_move="report it, with the version of vLLM",
            evidence=f"{error}\n{text[:500]}",
        ) from error
