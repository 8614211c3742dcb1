"""Small real wheels, and a folder of them with manifest and lock as build-wheels leaves it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wheels.canonical import pack
from wheels.manifest import Manifest, Wheel, describe
from wheels.target import Target

EPOCH = 1_700_000_000
HERE = Target(architecture="x86_64", python=(3, 11), glibc=(2, 36))


@dataclass(frozen=True)
class Place:
    """Wheels, manifest.json and stack.lock in a folder."""

    folder: Path
    manifest: Manifest


def small_wheel(
    folder: Path,
    name: str,
    version: str = "1.0",
    *,
    requires: Sequence[str] = (),
    python: str = ">=3.9",
    content: str = "VALUE = 1\n",
) -> Path:
    """Write a wheel with one module, whose METADATA is as strict checks want it."""
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    tree = folder / f".{module}"
    metadata = [
        *("Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}", f"Summary: {name} of a test"),
        "License-Expression: MIT",
        *(f"Requires-Dist: {requirement}" for requirement in requires),
        *([f"Requires-Python: {python}"] if python else []),
        *("Description-Content-Type: text/plain", "", f"{name} of a test\n"),
    ]
    files = {
        f"{module}/__init__.py": content,
        f"{info}/METADATA": "\n".join(metadata),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    for path, text in files.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text(text, encoding="utf-8")
    target = folder / f"{module}-{version}-py3-none-any.whl"
    pack(tree, target, EPOCH)
    _remove(tree)
    return target


def _remove(tree: Path) -> None:
    for path in sorted(tree.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    tree.rmdir()


def listed(folder: Path, *wheels: Wheel, stack: str = "small") -> Place:
    """Write manifest.json and stack.lock for wheels that lie in the folder."""
    text = "".join(f"{one.name}=={one.version} --hash=sha256:{one.sha256}\n" for one in wheels)
    (folder / "stack.lock").write_text(text, encoding="utf-8")
    digest = hashlib.sha256(text.encode()).hexdigest()
    found = Manifest(stack=stack, target=HERE, lock_sha256=digest, index_lock="d" * 64, wheels=wheels)
    (folder / "manifest.json").write_text(json.dumps(found.model_dump(mode="json"), indent=1) + "\n", encoding="utf-8")
    return Place(folder, found)


def small_place(folder: Path, content: str = "VALUE = 1\n", **changes: object) -> Place:
    """Make a folder of two wheels: one that we built (``changes`` hold for it), one of an index that it requires."""
    folder.mkdir(parents=True, exist_ok=True)
    needed = describe(small_wheel(folder, "spark-needed", "2.0"), "index")
    path = small_wheel(folder, "spark-alpha", "1.0+cu130", requires=["spark-needed>=2"], content=content)
    ours = describe(path, "source", "r" * 64).model_copy(update=changes)
    return listed(folder, ours, needed)
