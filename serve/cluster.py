"""What decides what runs: machines, wheels, model, release; and which unit runs on which node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath

from packaging.version import Version

from core.config import Cluster, Node, Profile, Stack
from core.errors import UsageError
from core.question import model_folder
from core.units import RANK, RAY_HEAD, RAY_WORKER, VLLM
from deploy.checks.gpu import FEWER_RANKS

UNIT_FOLDER = PurePosixPath("/etc/systemd/system")

RAY_TOKENS = Version("2.52")
"""Ray asks who somebody is from this version on (https://docs.ray.io/en/latest/ray-security/token-auth.html)."""


@dataclass(frozen=True)
class Service:
    """Everything that decides what runs: machines, wheels, model, release."""

    cluster: Cluster
    stack: Stack
    profile: Profile
    release: str

    @property
    def model(self) -> PurePosixPath:
        """The model's folder on every node."""
        return model_folder(self.cluster, self.profile)

    @cached_property
    def vllm(self) -> Version:
        """The version of the stack's vLLM."""
        return Version(self.stack.components["vllm"].version)

    @property
    def ray_asks(self) -> bool:
        """Whether Ray can be told to let in only who has the cluster's token."""
        return self.profile.executor == "ray" and Version(self.stack.components["ray"].version) >= RAY_TOKENS

    def require_ranks(self) -> None:
        """Raise UsageError when the profile needs more GPUs than the nodes have, one each."""
        have, ranks = len(self.cluster.nodes), self.profile.ranks
        if ranks > have:
            raise UsageError(
                f"the profile {self.profile.name} needs {ranks} GPUs, {self.cluster.name} has {have} nodes of one",
                next_move=FEWER_RANKS,
            )

    @property
    def ranked(self) -> tuple[Node, ...]:
        """The nodes that have a rank: with mp as many as there are ranks, from the head on; Ray chooses among all."""
        return self.cluster.nodes[: self.profile.ranks] if self.profile.executor == "mp" else self.cluster.nodes

    @property
    def stages(self) -> tuple[Mapping[str, str], ...]:
        """Node to unit, one stage after the other: the next one starts when all of a stage run."""
        head, workers = self.cluster.head.name, [node.name for node in self.ranked[1:]]
        if self.profile.executor == "ray":
            stages: tuple[dict[str, str], ...] = ({head: RAY_HEAD}, dict.fromkeys(workers, RAY_WORKER), {head: VLLM})
        else:
            stages = ({head: VLLM, **dict.fromkeys(workers, RANK)},)
        return tuple(stage for stage in stages if stage)

    def units_of(self, node: Node) -> tuple[str, ...]:
        """Return the units of the engine on ``node``, in starting order."""
        return tuple(stage[node.name] for stage in self.stages if node.name in stage)
