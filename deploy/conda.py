"""Environments by the owner's own Miniforge: made offline beside his, found by `conda activate NAME`, with a hook.

An environment is made of the packages that Python is in one of the owner's environments (that one is read, nothing
more): Miniforge has them unpacked, so nothing is fetched and no solver asked. NAME is a link to the one in use.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import PurePosixPath

from core.config import Cluster, Node, Stack
from core.facts import NodeFacts
from core.findings import Finding
from core.plan import Run, Step, Write
from core.pythons import HOOK
from deploy.interpreter import interpreter_for
from wheels.manifest import Manifest

BACK = HOOK.replace("/activate.d/", "/deactivate.d/")

# Names and hashes of Python and of all that it needs, as the owner's environment has them.
_LIST = """
import glob, json, sys
home, target = sys.argv[1:]
records = [json.load(open(path)) for path in glob.glob(home + "/conda-meta/*.json")]
by_name = {record["name"]: record for record in records if "url" in record}
if "python" not in by_name:
    sys.exit(home + " holds no package python")
needed, left = {}, ["python"]
while left:
    name = left.pop()
    if name in by_name and name not in needed:
        needed[name] = by_name[name]
        left += [dependency.split()[0] for dependency in by_name[name]["depends"]]
with open(target, "w") as out:
    out.write("@EXPLICIT\\n")
    for record in needed.values():
        out.write(record["url"] + ("#" + record["md5"] if record.get("md5") else "") + "\\n")
"""
# conda takes the owner's settings; these keep it to what is asked, and its list of environments as it is.
_SETTINGS = ("CONDA_REGISTER_ENVS=false", "CONDA_OFFLINE=true", "CONDA_ADD_PIP_AS_PYTHON_DEPENDENCY=false")
_NAME = 'mkdir -p "$(dirname "$2")" && ln -sfnT "$1" "$2.sparkstack-new" && mv -T "$2.sparkstack-new" "$2"'
_UNNAME = '[ "$(readlink "$2")" != "$1" ] || rm -f "$2"'

_UNDO = """\
# made by sparkstack: takes back what its hook in activate.d set
eval "${_SPARKSTACK_UNDO-}"
unset _SPARKSTACK_UNDO
"""


def make_steps(cluster: Cluster, stack: Stack, node: Node, seen: NodeFacts, manifest: Manifest) -> tuple[Step, ...]:
    """Make the environment of a release."""
    home = PurePosixPath(interpreter_for(cluster, stack, seen, manifest)).parent.parent
    place = PurePosixPath(cluster.root / "releases" / manifest.release)
    listed, prefix = place / "conda.txt", place / "venv"
    return (
        Run(
            node=node.name,
            title=f"list what Python is made of in {home}",
            reason="Miniforge has those packages, so nothing has to be fetched",
            argv=("python3", "-I", "-c", _LIST, str(home), str(listed)),
        ),
        Run(
            node=node.name,
            title="make the environment with the node's Miniforge",
            reason="the cluster's backend is conda; a release has its own",
            argv=(
                *("env", *_SETTINGS, str(seen.pythons.conda), "create", "--yes", "--quiet", "--offline"),
                *("--no-default-packages", "--prefix", str(prefix), "--file", str(listed)),
            ),
            timeout=600,
            hint="if its package cache was emptied (conda clean), fill it once on the node, with a network: "
            f"{seen.pythons.conda} create --download-only --yes --name sparkstack-packages --file {listed}",
        ),
        Run(
            node=node.name,
            title="make the folders of its hooks",
            reason="conda reads them",
            argv=("mkdir", "-p", str((prefix / HOOK).parent), str((prefix / BACK).parent)),
        ),
    )


def hook_steps(cluster: Cluster, stack: Stack, node: Node, seen: NodeFacts, manifest: Manifest) -> tuple[Step, ...]:
    """Have `conda activate` set the stack's variables, and `conda deactivate` take them back."""
    text = hook_text(stack)
    if not cluster.backend.conda or seen.hooks.get(manifest.release) == text:
        return ()
    prefix = PurePosixPath(cluster.root / "releases" / manifest.release / "venv")
    why = f"conda activate sets {', '.join(stack.environment) or 'nothing'}"
    return (
        Write(
            node=node.name,
            title="write the hook of deactivate.d",
            reason="what was set before comes back",
            path=prefix / BACK,
            content=_UNDO,
        ),
        Write(node=node.name, title="write the hook of activate.d", reason=why, path=prefix / HOOK, content=text),
    )


def hook_text(stack: Stack) -> str:
    """Return what `conda activate` reads: sets the stack's variables, and notes how each was before.

    The note is of variables, for the release that is deactivated may be another one than was activated.
    """
    rows = [f"# made by sparkstack: the environment of the stack {stack.name}", "_SPARKSTACK_UNDO="]
    for name, value in sorted(stack.environment.items()):
        kept = f"_SPARKSTACK_KEPT_{name}"
        rows += [
            f'if [ -n "${{{name}+set}}" ]; then',
            f'    export {kept}="${name}"',
            f'    _SPARKSTACK_UNDO="$_SPARKSTACK_UNDO export {name}=\\"\\${kept}\\"; unset {kept};"',
            "else",
            f'    _SPARKSTACK_UNDO="$_SPARKSTACK_UNDO unset {name};"',
            "fi",
            f"export {name}={shlex.quote(value)}",
        ]
    return "\n".join([*rows, "export _SPARKSTACK_UNDO", ""])


def name_steps(cluster: Cluster, node: Node, seen: NodeFacts) -> tuple[Step, ...]:
    """Have the name that `conda activate` takes lead to the release in use, whichever that is."""
    target, name = link_target(cluster), str(cluster.prefix)
    others = [link for link in our_links(cluster, seen) if link != name or not cluster.backend.conda]
    steps: list[Step] = [unname(cluster, node, link, "the cluster's file does not name it") for link in others]
    if cluster.backend.conda and seen.pythons.links.get(name) != target:
        steps.append(
            Run(
                node=node.name,
                title=f"have conda find the release in use as {name}",
                reason=f"conda activate {activated(cluster)} takes what current leads to",
                argv=("sh", "-c", _NAME, "sh", target, name),
            )
        )
    return tuple(steps)


def unname(cluster: Cluster, node: Node, link: str, reason: str) -> Run:
    """Remove a name that we gave, unless it leads elsewhere by now."""
    argv = ("sh", "-c", _UNNAME, "sh", link_target(cluster), link)
    return Run(node=node.name, title=f"take the name {link} away", reason=reason, argv=argv)


def link_target(cluster: Cluster) -> str:
    """Return what the name leads to."""
    return str(cluster.root / "current/venv")


def our_links(cluster: Cluster, seen: NodeFacts) -> list[str]:
    """Return the names among Miniforge's environments that lead to our release in use."""
    return sorted(link for link, target in seen.pythons.links.items() if target == link_target(cluster))


def activated(cluster: Cluster) -> str:
    """Return what `conda activate` takes: the name, or the path of a prefix that is elsewhere."""
    return str(cluster.backend.prefix or cluster.backend.name)


def findings(cluster: Cluster, node: Node, seen: NodeFacts) -> Iterator[Finding]:
    """Find what stands in conda's way on a node."""
    if not cluster.backend.conda:
        return
    if seen.pythons.conda is None:
        yield Finding(
            node.name,
            f"no Miniforge is in {cluster.miniforge}",
            f'name its folder as miniforge under [backend] of cluster {cluster.name}, or say kind = "venv"',
        )
    name, target = str(cluster.prefix), link_target(cluster)
    if seen.pythons.taken or seen.pythons.links.get(name, target) != target:
        yield Finding(
            node.name,
            f"conda has an environment {activated(cluster)} that is not ours ({name}); it is left alone",
            f"choose another name under [backend] of cluster {cluster.name}",
        )
