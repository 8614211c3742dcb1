"""Which Pythons a node has, by their names, and what its Miniforge holds: one command of the probe, and its parser."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from core.backend import Minor
from core.config import Cluster

HOOK = "etc/conda/activate.d/sparkstack.sh"
"""In an environment: what `conda activate` reads to set the stack's variables."""
IN_RELEASE = f"/venv/{HOOK}"

# Interpreters where Debian, the user and uv put them, those of ours; Miniforge, its environments that hold a Python
# (links are no environments of the owner's own), links among its environments, and what has the name that is wanted.
_LOOK = """
for one in /usr/bin/python3.* /usr/local/bin/python3.* "$HOME"/.local/bin/python3.* \
    "$HOME"/.local/share/uv/python/*/bin/python3.*; do
    if [ -x "$one" ]; then printf 'python\\t%s\\n' "$one"; fi
done
for one in "$1"/python/*/bin/python3.*; do if [ -x "$one" ]; then printf 'brought\\t%s\\n' "$one"; fi; done
if [ -x "$2/bin/conda" ]; then printf 'conda\\t%s\\n' "$2/bin/conda"; fi
for one in "$2"/conda-meta/python-3.*.json "$2"/envs/*/conda-meta/python-3.*.json; do
    if [ -e "$one" ] && ! [ -L "${one%/conda-meta/*}" ]; then printf 'seed\\t%s\\n' "$one"; fi
done
for one in "$2"/envs/* "$3"; do if [ -L "$one" ]; then printf 'link\\t%s\\t%s\\n' "$one" "$(readlink "$one")"; fi; done
if [ -e "$3" ] && ! [ -L "$3" ]; then printf 'there\\t%s\\n' "$3"; fi
"""


@dataclass(frozen=True)
class Pythons:
    """What a node has to make environments of. Paths are text, versions are minor ones."""

    found: Mapping[Minor, str] = field(default_factory=dict)
    """An interpreter for each version, of those that are not ours."""
    brought: Mapping[str, str] = field(default_factory=dict)
    """Folder in ROOT/python to the interpreter in it."""
    conda: str | None = None
    """Miniforge's command."""
    seeds: Mapping[Minor, str] = field(default_factory=dict)
    """An environment of Miniforge for each version, its base first."""
    links: Mapping[str, str] = field(default_factory=dict)
    """Links among Miniforge's environments and at the name that is wanted, with what they lead to."""
    taken: bool = False
    """Whether something that is no link has the name that is wanted."""


def request(cluster: Cluster) -> dict[str, list[str]]:
    """Return the command that the probe runs for it."""
    return {"pythons": ["sh", "-c", _LOOK, "sh", str(cluster.root), str(cluster.miniforge), str(cluster.prefix)]}


def parse(text: str) -> Pythons:
    """Parse what the command printed. Pure."""
    rows = [line.split("\t") for line in text.splitlines()]
    return Pythons(
        found=dict(reversed(list(_interpreters(rows, "python")))),
        brought={PurePosixPath(path).parts[-3]: path for _, path in _interpreters(rows, "brought")},
        conda=next((row[1] for row in rows if row[0] == "conda"), None),
        seeds=dict(reversed(list(_seeds(rows)))),
        links={row[1]: row[2] for row in rows if row[0] == "link"},
        taken=any(row[0] == "there" for row in rows),
    )


def _interpreters(rows: list[list[str]], kind: str) -> Iterator[tuple[Minor, str]]:
    for row in rows:
        found = re.search(r"/python3\.(\d+)$", row[1]) if row[0] == kind else None
        if found:
            yield (3, int(found[1])), row[1]


def _seeds(rows: list[list[str]]) -> Iterator[tuple[Minor, str]]:
    for row in rows:
        found = re.search(r"(.*)/conda-meta/python-3\.(\d+)\.[^/]*\.json$", row[1]) if row[0] == "seed" else None
        if found:
            yield (3, int(found[2])), found[1]
