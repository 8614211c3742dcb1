"""What the memory allows: tokens a second from bandwidth and bytes, KV cache that fits, layers and weights by rank.

A decoding step reads the weights of a rank once, and the keys and values of every sequence in it. Nothing can be faster
than that; computing, waiting for the other rank and the software's own time come on top. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from core.config import Profile
from deploy.need import GPU_WORK, UNIFIED, UTILIZATION, flag
from deploy.shape import DTYPES, Shape, kv_bytes_a_token
from serve.bench.figures import Figures
from serve.bench.record import Fingerprint, Record
from serve.bench.suite import Test

NOMINAL = {"NVIDIA GB10": 273.0}
"""GB/s by the maker's word, where no probe has measured: LPDDR5X at 8533 MT/s, 256 bits."""


@dataclass(frozen=True)
class Rank:
    """A rank's part of the model; ``weights`` in bytes, layers from ``first`` to ``last``, both included."""

    node: str
    first: int
    last: int
    weights: int


@dataclass(frozen=True)
class Ceiling:
    """What bandwidth allows at a number of sequences of a mean length; TPOT in milliseconds."""

    tpot: float
    throughput: float


def shape_of(print_: Fingerprint) -> Shape | None:
    """Return the model's shape where the fingerprint holds it and its weights can be counted."""
    shape = Shape.model_validate(print_.shape) if print_.shape else None
    return shape if shape is not None and shape.plain else None


def number_of(print_: Fingerprint, shape: Shape) -> int:
    """Return the bytes of one weight."""
    return DTYPES.get(flag(print_.flags, "--dtype") or "", shape.number)


def stages(layers: int, count: int) -> tuple[tuple[int, int], ...]:
    """Divide layers over stages as vLLM does: what is left over goes to the stages before the last, the latest first.

    https://github.com/vllm-project/vllm/blob/main/vllm/distributed/utils.py, get_pp_indices
    """
    sizes, left = [layers // count] * count, layers % count
    for number in range(2, left + 2):
        sizes[-number] += 1
    ends = [sum(sizes[: n + 1]) for n in range(count)]
    return tuple((end - size, end - 1) for size, end in zip(sizes, ends, strict=True))


def ranks(print_: Fingerprint, shape: Shape) -> tuple[Rank, ...]:
    """Return every rank's part; one GPU a node, the stages in the order of the nodes."""
    slices, number = print_.tensor_parallel, number_of(print_, shape)
    found = list(_stage_weights(print_, shape))
    parts = [(first, last, weights * number // slices) for first, last, weights in found for _ in range(slices)]
    names = [node.name for node in print_.nodes] + ["?"] * len(parts)
    return tuple(Rank(name, *part) for name, part in zip(names, parts, strict=False))


def _stage_weights(print_: Fingerprint, shape: Shape) -> Iterator[tuple[int, int, int]]:
    """Give first layer, last layer and parameters of each stage: the first has the embedding, the last the output."""
    divided = stages(shape.num_hidden_layers, print_.pipeline_parallel)
    for first, last in divided:
        ends = shape.embedding * (first == 0)
        if last == shape.num_hidden_layers - 1:
            alone_and_tied = shape.tie_word_embeddings and first == 0
            ends += shape.hidden_size + shape.embedding * (not alone_and_tied)
        yield first, last, (last - first + 1) * shape.layer + ends


def bandwidth(print_: Fingerprint) -> tuple[float, str] | None:
    """Return the slowest node's memory bandwidth in GB/s and where the figure is from; None where nobody knows."""
    measured = [node.rate for node in print_.nodes]
    known = [rate for rate in measured if rate is not None]
    if len(known) == len(measured):
        return min(known), "invoke probe"
    nominal = NOMINAL.get(print_.gpu or "")
    return None if nominal is None else (nominal, "the maker's figure")


def ceiling(print_: Fingerprint, sequences: float, length: float) -> Ceiling | None:
    """Return what bandwidth allows with so many sequences of this mean length under way; None where it is not known.

    Stages work one after the other on a token and at the same time on different sequences: a token waits for all of
    them, and each of them reads its weights once for its share of the sequences. Slices read at the same time.
    """
    shape, rate = shape_of(print_), bandwidth(print_)
    if shape is None or rate is None or sequences <= 0:
        return None
    each = max(1.0, sequences / print_.replicas)
    at_once = max(1.0, each / print_.pipeline_parallel)  # sequences that a stage has in hand in one step
    steps = (_step_bytes(rank, print_, shape, at_once, length) for rank in _stages_of(print_, shape))
    tpot = sum(steps) / (rate[0] * 1e9)
    return Ceiling(tpot * 1000, each * print_.replicas / tpot)


def _stages_of(print_: Fingerprint, shape: Shape) -> tuple[Rank, ...]:
    """Return one rank of each stage: the slices of a stage are alike."""
    return ranks(print_, shape)[:: print_.tensor_parallel]


def _step_bytes(rank: Rank, print_: Fingerprint, shape: Shape, sequences: float, length: float) -> float:
    """Return the bytes that a rank reads in one step: its weights but the embedding's table, and its KV cache."""
    number, layers = number_of(print_, shape), rank.last - rank.first + 1
    table = 0 if shape.tie_word_embeddings else shape.embedding * number // print_.tensor_parallel * (rank.first == 0)
    heads = max(1, shape.kv_heads // print_.tensor_parallel)
    cached = 2 * layers * heads * shape.head * _kv_number(print_, shape)
    return rank.weights - table + sequences * length * cached


def _kv_number(print_: Fingerprint, shape: Shape) -> int:
    given = flag(print_.flags, "--kv-cache-dtype") or ""
    return 1 if given.startswith("fp8") else DTYPES.get(given, number_of(print_, shape))


def of_test(record: Record, test: Test, figures: Figures) -> Ceiling | None:
    """Return the ceiling of a test at the concurrency that a run of it had, halfway through each answer."""
    return ceiling(record.fingerprint, figures.in_flight, test.input + test.output / 2)


def kv_tokens(print_: Fingerprint, memory: int, *, nodes: int) -> int | None:
    """Return how many tokens of KV cache fit where the model is spread over so many nodes in stages, or lies on one.

    Only where vLLM takes a share of the machine's memory: on GPUs that have none of their own.
    """
    shape = shape_of(print_)
    if shape is None or not any(gpu.capability in UNIFIED for gpu in print_.nodes[0].gpus):
        return None
    spread = Profile(
        name="spread", model=print_.model, served_names=("x",), pipeline_parallel=nodes, flags=print_.flags
    )
    share = float(flag(print_.flags, "--gpu-memory-utilization") or UTILIZATION)
    alone = print_.model_copy(update={"pipeline_parallel": nodes, "tensor_parallel": 1})
    weights = max(rank.weights for rank in ranks(alone, shape))
    room = share * memory - weights - GPU_WORK
    return max(0, int(room / kv_bytes_a_token(shape, spread, _kv_number(print_, shape))))
