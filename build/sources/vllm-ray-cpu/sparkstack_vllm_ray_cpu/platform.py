"""The CPU platform under a name that Ray counts."""

from __future__ import annotations

from vllm.platforms.cpu import CpuPlatform


class CpuRayPlatform(CpuPlatform):
    """CPU platform whose workers ask Ray for a (logical) GPU each.

    A resource name of our own would read better, but vLLM's Ray executor sums up "GPU" when it looks at the nodes.
    """

    ray_device_key: str = "GPU"

    @classmethod
    def get_device_communicator_cls(cls) -> str:
        """Return the communicator that looks whether its ranks share a machine."""
        return "sparkstack_vllm_ray_cpu.communicator.MachineAwareCommunicator"
