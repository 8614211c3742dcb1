"""A Miniforge on a machine, in its layout: a base with Python, its package cache, an environment of the owner's.

The real command can be had from no registry that these tests use. Where a real one lies in ~/miniforge3 it is taken
as it is; elsewhere `conda` is a stand-in for the two commands that the suite and its user give: an explicit `create`,
and what a shell reads to activate and deactivate.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.machines.harness import Lab

HOME = "/home/spark/miniforge3"
OWNERS = "buddhist-train"
"""An environment of the owner's."""


@dataclass(frozen=True)
class Interpreter:
    """The Python of the machines, which are of this host's own release: 3.11.2 on Debian 12."""

    version: str
    machine: str
    """As `uname -m` says it."""

    @classmethod
    def of(cls, lab: Lab, name: str) -> Interpreter:
        """Ask a machine for its own."""
        ask = "import platform; print(platform.python_version(), platform.machine())"
        return cls(*lab.output(name, f"python3 -c '{ask}'").split())

    def put_into(self, text: str) -> str:
        """Return a text with @VERSION@, @MINOR@ and @MACHINE@ replaced."""
        words = {"@VERSION@": self.version, "@MINOR@": self.minor, "@MACHINE@": self.machine}
        for word, value in words.items():
            text = text.replace(word, value)
        return text

    @property
    def minor(self) -> str:
        """Return it without its last number."""
        return self.version.rpartition(".")[0]


CONDA = """#!/usr/bin/python3
import glob, json, os, sys
home = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
def packages():
    for path in glob.glob(home + "/pkgs/*/info/repodata_record.json"):
        yield json.load(open(path)), os.path.dirname(os.path.dirname(path))
def create(prefix, listed):
    here = {record["url"] + "#" + record["md5"]: (record, folder) for record, folder in packages()}
    os.makedirs(prefix + "/conda-meta")
    for line in open(listed).read().split()[1:]:
        record, folder = here[line]
        for top, folders, files in os.walk(folder):
            inside = os.path.relpath(top, folder)
            folders[:] = [] if inside == "info" else folders
            os.makedirs(os.path.join(prefix, inside), exist_ok=True)
            links = [name for name in folders if os.path.islink(os.path.join(top, name))]
            for name in files + links if inside != "info" else []:
                os.link(os.path.join(top, name), os.path.join(prefix, inside, name), follow_symlinks=False)
        json.dump(record, open(f"{prefix}/conda-meta/{os.path.basename(folder)}.json", "w"))
    open(prefix + "/conda-meta/history", "w").close()
def hooks(prefix, kind):
    for path in sorted(glob.glob(f"{prefix}/etc/conda/{kind}.d/*.sh")):
        print(f'. "{path}"')
def activate(name):
    prefix = f"{home}/envs/{name}"
    if not os.path.isdir(prefix + "/conda-meta"):
        sys.exit("EnvironmentLocationNotFound: Not a conda environment: " + prefix)
    print(f'export CONDA_PREFIX="{prefix}" PATH="{prefix}/bin:{os.environ["PATH"]}"')
    hooks(prefix, "activate")
def deactivate():
    hooks(os.environ["CONDA_PREFIX"], "deactivate")
    print("unset CONDA_PREFIX")
words = sys.argv[1:]
if words[0] == "create":
    assert "--offline" in words
    create(words[words.index("--prefix") + 1], words[words.index("--file") + 1])
elif words[:2] == ["shell.posix", "activate"]:
    activate(words[2])
elif words == ["shell.posix", "deactivate"]:
    deactivate()
else:
    sys.exit(f"conda: {words}")
"""
# Debian's interpreter as a package, without what leads out of it, and with the folders of every other Python.
PACKAGE = """
set -e
name=python-@VERSION@-0 && place=$HOME/miniforge3/pkgs/$name && mkdir -p $place/bin $place/lib $place/info
cp /usr/bin/python@MINOR@ $place/bin/ && ln -s python@MINOR@ $place/bin/python && ln -s python@MINOR@ $place/bin/python3
cp -a /usr/lib/python@MINOR@ $place/lib/ && mkdir $place/lib/python@MINOR@/site-packages
cd $place/lib/python@MINOR@ && rm -rf config-* sitecustomize.py EXTERNALLY-MANAGED
sed -i "s/prefix_scheme = 'posix_local'/prefix_scheme = 'posix_prefix'/" $place/lib/python@MINOR@/sysconfig.py
ln -s site-packages $place/lib/python@MINOR@/dist-packages
url=https://conda.anaconda.org/conda-forge/linux-@MACHINE@/$name.conda
echo '{"name": "python", "version": "@VERSION@", "build": "0", "build_number": 0, "depends": ["tzdata >=2020"],' \
    '"md5": "d41d8cd98f00b204e9800998ecf8427e", "url": "'$url'"}' > $place/info/repodata_record.json
"""


def install(lab: Lab, name: str) -> None:
    """Have a Miniforge on a machine, with a base that is the cache's Python and an environment of the owner's."""
    if lab.ssh(name, f"test -x {HOME}/bin/conda").code == 0:
        return
    lab.output(name, f"mkdir -p {HOME}/bin {HOME}/envs && cat > {HOME}/bin/conda <<'CONDA'\n{CONDA}CONDA")
    lab.output(name, f"chmod 755 {HOME}/bin/conda")
    python = Interpreter.of(lab, name)
    lab.output(name, python.put_into(PACKAGE))
    record = f"conda-meta/python-{python.version}-0.json"
    lab.output(name, f"cd {HOME} && mkdir conda-meta && cp pkgs/*/info/repodata_record.json {record}")
    lab.output(name, f"cd {HOME} && mkdir -p envs/{OWNERS}/conda-meta && touch conda-meta/history envs/{OWNERS}/thesis")


def state(lab: Lab, name: str) -> str:
    """Return a line for every file of the owner's, with its hash, but the packages in the cache and our link."""
    return lab.output(
        name,
        f"cd {HOME} && find . -path ./pkgs -prune -o -name __pycache__ -prune -o -type f -print0 | sort -z | "
        "xargs -0 sha256sum && find . -path ./pkgs -prune -o -type l -printf '%p %l\\n' | sort",
    )


def activated(lab: Lab, name: str, environment: str, command: str, after: str = "true") -> str:
    """Return what a command prints in an activated environment, and ``after`` once it was deactivated again."""
    conda = f"{HOME}/bin/conda"
    lines = (
        "set -e",
        f'shown=$({conda} shell.posix activate {environment}) && eval "$shown" && {command}',
        f'shown=$({conda} shell.posix deactivate) && eval "$shown" && {after}',
    )
    return lab.output(name, "\n".join(lines))
