"""vLLM's CPU communicator, for ranks that may be on different machines."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator


class MachineAwareCommunicator(CpuCommunicator):
    """Uses shared memory only between ranks that share it; others talk through torch.distributed (Gloo).

    vLLM 0.32.0 compares names made from the port of the rendezvous, which are equal on every machine, and then dies
    with "open shm in SHMManager failed. errno: 2".
    """

    def _all_group_ranks_share_shm_group_name(self) -> bool:
        places: list[str] = [""] * self.world_size
        torch.distributed.all_gather_object(places, _shared_memory(), group=self.device_group)
        return len(set(places)) == 1 and super()._all_group_ranks_share_shm_group_name()


def _shared_memory() -> str:
    """Return what tells one machine's shared memory from another's: the kernel's boot, and the mounted file system."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot} {os.stat('/dev/shm').st_dev}"
