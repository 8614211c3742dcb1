"""vLLM platform plug-in: the CPU platform, with a resource that Ray can place workers by."""

from __future__ import annotations

import os


def plugin() -> str | None:
    """Return the platform's class for vLLM to load, or None unless SPARKSTACK_RAY_CPU=1.

    vLLM calls this before any platform is chosen; importing vllm.platforms here would recurse, hence a name.
    """
    if os.environ.get("SPARKSTACK_RAY_CPU") != "1":
        return None
    return "sparkstack_vllm_ray_cpu.platform.CpuRayPlatform"
