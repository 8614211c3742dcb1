"""The CPU platform under a name that Ray counts."""

from __future__ import annotations

from vllm.platforms.cpu import CpuPlatform


class CpuRayPlatform(CpuPlatform):
    """CPU platform whose workers ask Ray for a (logical) GPU each.

    A resource name of our own would read better, but vLLM's Ray executor sums up "GPU" when it looks at the nodes.
    """

    ray_device_key: str = "GPU"
