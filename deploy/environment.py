"""Releases on a node: a folder each with its own environment, made beside what runs, taken into use by one rename.

`ROOT/releases/ID/` holds `venv`, `stack.lock` and, once it passed its checks, `complete.json`. A folder without that
record is a leftover of a deployment that did not end; it is made anew.
"""

from __future__ import annotations

import json
from pathlib import PurePosixPath

from core.config import Cluster, Node, Stack
from core.facts import INSTALL_UNIT, NodeFacts
from core.plan import Run, Step, Write
from deploy.push import wheel_folder
from wheels.manifest import Manifest, lock_text

INSTALL_TIMEOUT = 1800


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
    return (
        *_leftovers(node, seen, manifest.release, place),
        Run(
            node=node.name,
            title="make the environment",
            reason=f"release {manifest.release} is not on the node",
            argv=("python3", "-m", "venv", str(venv)),
            timeout=300,
            hint="install python3-venv on the node: sudo apt-get install python3-venv",
        ),
        Write(
            node=node.name,
            title="write stack.lock",
            reason="it names every wheel by hash",
            path=lock,
            content=lock_text(stack, manifest.target, manifest.wheels),
        ),
        Run(
            node=node.name,
            title=f"install {len(manifest.wheels)} wheels",
            reason="offline, by hash, nothing but what was pushed",
            argv=_pip_install(cluster, venv, lock),
            privileged=True,
            user=cluster.user,
            unit=INSTALL_UNIT,
            timeout=INSTALL_TIMEOUT,
        ),
    )


def _leftovers(node: Node, seen: NodeFacts, release: str, place: PurePosixPath) -> tuple[Step, ...]:
    """An installation that a lost connection or Ctrl-C left behind: end it, then remove what it made."""
    unit = seen.units.get(INSTALL_UNIT)
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
        argv=("rm", "-rf", str(place)),
    )
    running = unit is not None and unit.active in ("active", "activating", "deactivating")
    return (*([stop] if running else []), *([remove] if release in seen.partial else []))


def _pip_install(cluster: Cluster, venv: PurePosixPath, lock: PurePosixPath) -> tuple[str, ...]:
    return (
        *(str(venv / "bin/python"), "-m", "pip", "install", "--isolated", "--disable-pip-version-check", "--no-index"),
        *(
            "--no-deps",
            "--require-hashes",
            "--only-binary=:all:",
            "--no-compile",
            "--no-cache-dir",
            "--progress-bar=off",
        ),
        *(f"--find-links={wheel_folder(cluster)}", f"--requirement={lock}"),
    )


def check_steps(cluster: Cluster, stack: Stack, node: Node, seen: NodeFacts, manifest: Manifest) -> tuple[Step, ...]:
    """Check the new environment (`pip check`, imports), then write the record that makes it a release."""
    if manifest.release in seen.releases:
        return ()
    python = str(interpreter(cluster, manifest.release))
    record = {"release": manifest.release, "stack": stack.name, "wheels": len(manifest.wheels)}
    return (
        Run(
            node=node.name,
            title="check that the wheels fit each other",
            reason="pip check",
            argv=(python, "-c", _PIP_CHECK, *stack.without),
            timeout=300,
            hint="the stack's lock and its wheels do not fit: read the lines above, then correct config/stacks",
        ),
        Run(
            node=node.name,
            title=f"import {', '.join(stack.imports)}",
            reason="a wheel counts once it loads on the node",
            argv=_with_environment(
                stack, (python, "-c", "; ".join(f"import {name}" for name in stack.imports) or "pass")
            ),
            timeout=600,
        ),
        Write(
            node=node.name,
            title="record the release as complete",
            reason="only a complete release can be taken into use",
            path=release_folder(cluster, manifest.release) / "complete.json",
            content=json.dumps(record) + "\n",
        ),
    )


# `pip check` with the distributions that the stack leaves out on purpose taken as agreed; everything else fails.
_PIP_CHECK = """
import re, subprocess, sys
done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True)
agreed = "|".join(map(re.escape, sys.argv[1:])) or "$^"
open_lines = [line for line in done.stdout.splitlines() if re.search(r" requires |has requirement", line)
              and not re.search(rf"requires (?:{agreed}), which is not installed", line)]
print("\\n".join(open_lines))
sys.exit(bool(open_lines) or (done.returncode not in (0, 1)))
"""


def _with_environment(stack: Stack, argv: tuple[str, ...]) -> tuple[str, ...]:
    return ("env", *(f"{key}={value}" for key, value in sorted(stack.environment.items())), *argv)


def switch_steps(cluster: Cluster, node: Node, seen: NodeFacts, release: str) -> tuple[Step, ...]:
    """Point `current` at the release: a new link renamed over the old one."""
    if seen.current == release:
        return ()
    current, fresh = cluster.root / "current", cluster.root / ".current.new"
    script = 'ln -sfn "$1" "$2" && mv -T "$2" "$3"'
    was = f"it is {seen.current}" if seen.current else "there is none"
    argv = ("sh", "-c", script, "sh", f"releases/{release}", str(fresh), str(current))
    return (Run(node=node.name, title=f"switch current to {release}", reason=was, argv=argv),)
