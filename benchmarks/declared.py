"""What `invoke deploy` has made, declared in pyinfra and in Ansible, each with its fastest sane settings.

Both are told the least that says the same: the suite's folder and its owner, every wheel, the release's lock by
content, its environment (made where its record is missing), and `current`. Wheels go by rsync in Ansible's (names,
sizes, times). In pyinfra's they go by its own operation, which knows when there is nothing to do, or by rsync, which
does not: pyinfra then counts a change on every node each time.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from benchmarks import pair
from core.config import ROOT, Cluster
from core.process import Completed, run
from wheels.manifest import Manifest

PINS = ("pyinfra==3.10.0", "ansible-core==2.19.14")

_PYINFRA = """\
from pyinfra import host
from pyinfra.facts.files import File
from pyinfra.operations import files, server

files.directory(path={root!r}, user={user!r})
{wheels}
files.put(src={lock!r}, dest="{release}/stack.lock")
if host.get_fact(File, path={record!r}) is None:
    server.shell(commands=["python3 -m venv {release}/venv"])
files.link(path="{root}/current", target="releases/{name}")
"""

_WHEELS = {
    "sync.py": 'files.sync(src="{source}", dest="{root}/wheels", exclude=["*.json", "*.lock"], exclude_dir=["built"])',
    "rsync.py": 'files.rsync(src="{source}", dest="{root}/wheels/", flags=["-a", "--include=*.whl", "--exclude=*"])',
}
"""Two declarations for pyinfra, by how wheels go."""

_PLAYBOOK = """\
- hosts: all
  gather_facts: false
  tasks:
    - file: {{path: {root}, state: directory, owner: {user}}}
    - command:
        argv: [rsync, -ai, "--include=*.whl", "--exclude=*", -e, {ssh!r}, {source}, "{{{{ wheels }}}}"]
      delegate_to: localhost
      register: pushed
      changed_when: pushed.stdout != ""
    - copy: {{src: {lock}, dest: {release}/stack.lock}}
    - command:
        cmd: python3 -m venv {release}/venv
        creates: {record}
    - file: {{path: {root}/current, state: link, src: releases/{name}}}
"""

_SETTINGS = """\
[defaults]
inventory = hosts
interpreter_python = /usr/bin/python3
host_key_checking = True
gathering = explicit
forks = 10
[ssh_connection]
pipelining = True
ssh_args = {options}
control_path_dir = {folder}/control
"""


@dataclass(frozen=True)
class Declared:
    """Both declarations in a folder, and what runs them."""

    folder: Path
    programs: Path

    def pyinfra(self, script: str) -> Completed:
        """Bring the state about with pyinfra; it is there already."""
        return self._run("pyinfra", "-y", "inventory.py", script)

    def ansible(self) -> Completed:
        """Bring the state about with Ansible; it is there already."""
        return self._run("ansible-playbook", "playbook.yml")

    def _run(self, *argv: str) -> Completed:
        clean = {"PATH": f"{self.programs}:{os.environ['PATH']}", "ANSIBLE_CONFIG": str(self.folder / "ansible.cfg")}
        return run([str(self.programs / argv[0]), *argv[1:]], cwd=self.folder, env=clean, timeout=pair.TIMEOUT)


def declare(cluster: Cluster, manifest: Manifest, source: Path, folder: Path) -> Declared:
    """Write both declarations of the release of ``manifest``, whose wheels lie in ``source``."""
    folder.mkdir(parents=True, exist_ok=True)
    release = cluster.root / "releases" / manifest.release
    options = f"-o ControlMaster=auto -o ControlPersist=60s -o UserKnownHostsFile={cluster.known_hosts}"
    said = {
        "root": str(cluster.root),
        "user": cluster.user,
        "source": f"{source}/",
        "lock": str(source / "stack.lock"),
        "name": manifest.release,
        "release": str(release),
        "record": str(release / "complete.json"),
        "options": options,
        "ssh": f"ssh -i {_key(cluster)} {options} -o ControlPath={folder}/control/rsync-%h",
        "folder": str(folder),
    }
    texts = {
        **{name: _PYINFRA.format(**said, wheels=wheels.format(**said)) for name, wheels in _WHEELS.items()},
        "inventory.py": _inventory(cluster),
        "playbook.yml": _PLAYBOOK.format(**said),
        "ansible.cfg": _SETTINGS.format(**said),
        "hosts": _hosts(cluster),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "control").mkdir(exist_ok=True)
    return Declared(folder, pair.environment("declared", PINS))


def _key(cluster: Cluster) -> Path:
    return ROOT / (cluster.identity or "")


def _inventory(cluster: Cluster) -> str:
    """Return pyinfra's inventory: the suite's key and known hosts, and no other host key."""
    told = {
        "ssh_user": cluster.user,
        "ssh_key": str(_key(cluster)),
        "ssh_known_hosts_file": str(cluster.known_hosts),
        "ssh_strict_host_key_checking": "yes",
    }
    return f"nodes = ({[str(node.management) for node in cluster.nodes]}, {told})\n"


def _hosts(cluster: Cluster) -> str:
    """Return Ansible's inventory: the suite's key."""
    nodes = (
        f"{node.management} wheels={cluster.user}@{node.management}:{cluster.root}/wheels/" for node in cluster.nodes
    )
    common = f"ansible_user={cluster.user} ansible_ssh_private_key_file={_key(cluster)}"
    return "[nodes]\n" + "".join(f"{node} {common}\n" for node in nodes) + "\n"
