"""Two releases of a few wheels each, in a folder of their own: a deployment takes seconds, and can be held anywhere."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from core.config import Stack
from tests.machines.checkout import Checkout
from tests.machines.command_line import CommandLine, Started
from tests.machines.harness import Lab, eventually
from wheels.manifest import Manifest, lock_text

A, B = "test-a", "test-b"
FOLDER = "/opt/small"
OLD = ("attrs", "certifi", "idna", "mpmath", "uv")
NEW = (*OLD, "networkx", "sympy")
NEW_BYTES = 8_000_000
"""What the new release has more, about."""
PORT = 8123
UNIT = f"""\
[Service]
ExecStart={FOLDER}/current/venv/bin/python -m http.server --bind 127.0.0.1 --directory /usr/share {PORT}
User=spark
[Install]
WantedBy=multi-user.target
"""
"""A service that runs from the release in use."""
STACK = """\
description = "a few wheels"
lock = "config/stacks/cpu.lock"
platforms = ["x86_64", "aarch64"]
python = ["3.11", "3.12", "3.13"]
imports = ["certifi", "attr"]
components = {}
"""
HOLD, HELD = "/tmp/hold", "/tmp/held"
_HOLDER = """\
#!/bin/sh
case "$*" in {words})
    if {when} && /usr/bin/mv {hold} {held} 2>/dev/null; then while [ -e {held} ]; do sleep 0.1; done; fi;;
esac
exec /usr/bin/{program} "$@"
"""


@dataclass(frozen=True)
class Point:
    """Where a deployment is held: before the ``program`` begins whose arguments match the shell pattern ``words``.

    ``when`` is a shell condition, in the program's working directory.
    """

    program: str
    words: str
    when: str = "true"


@dataclass(frozen=True)
class Hold:
    """A program that waits on a machine."""

    lab: Lab
    name: str

    def wait(self, started: Started) -> None:
        """Wait until the deployment has come there."""
        started.reaches(lambda: self.lab.ssh(self.name, f"test -e {HELD}").code == 0, "it never came there", 60)

    def end(self) -> None:
        """Let it go on."""
        self.lab.ssh(self.name, f"rm -f {HOLD} {HELD}")


@dataclass(frozen=True)
class Small:
    """The old release is in use on both machines and a service runs from it; the new one is to be deployed."""

    lab: Lab
    old: CommandLine
    new: CommandLine
    before: str
    after: str

    def current(self, name: str) -> str:
        """Return the release in use."""
        return self.lab.output(name, f"readlink {FOLDER}/current").removeprefix("releases/")

    def in_use(self) -> list[str]:
        """Return the release in use on each machine."""
        return [self.current(name) for name in (A, B)]

    def complete(self, name: str) -> set[str]:
        """Return the releases that may be taken into use."""
        found = self.lab.output(name, f"ls {FOLDER}/releases/*/complete.json").split()
        return {Path(path).parent.name for path in found}

    def serving(self, name: str) -> str:
        """Return the process that answers on a machine; the machine is asked over its own loopback."""
        ask = f'import urllib.request as u; print(u.urlopen(\\"http://127.0.0.1:{PORT}\\").status)'
        said = self.lab.output(name, f'systemctl show --property=MainPID --value small && python3 -c "{ask}"').split()
        assert said[1:] == ["200"], said
        return said[0]

    def listens(self, name: str) -> bool:
        """Say whether what serves has come up on a machine."""
        return self.lab.ssh(name, f"ss -Hltn sport = :{PORT} | grep -q .").code == 0

    def arrived(self, name: str) -> int:
        """Return the bytes below the suite's folder, releases left out."""
        return int(self.lab.output(name, f"du -sb --exclude=releases --exclude=cache {FOLDER} | cut -f1"))

    def note_files(self, name: str) -> None:
        """Remember the hash of every file of the old release and of its wheels, in the store and by name."""
        find = f"find {FOLDER}/releases/{self.before} {FOLDER}/wheels {FOLDER}/store -type f ! -name __pycache__"
        self.lab.output(name, f"{find} -print0 | xargs -0 sha256sum > /var/tmp/small.sums && sync /var/tmp/small.sums")

    def assert_no_file_lost(self, name: str) -> None:
        """Every file that was noted is there with its bytes."""
        done = self.lab.ssh(name, "sha256sum --check --quiet /var/tmp/small.sums")
        assert done.code == 0, done

    def reset(self) -> None:
        """Put both machines back: the old release in use, nothing of the new one there, no program held."""
        self.lab.each(self._reset)

    def _reset(self, name: str) -> None:
        self.lab.as_root(name, f"rm -f {HOLD} {HELD} /usr/local/bin/* && chown spark {FOLDER}")
        self.lab.output(
            name,
            f"cd {FOLDER} && rm -rf releases/{self.after} cache .current.new store/.incoming && "
            "rm -f wheels/networkx-* wheels/sympy-* && find store -type f -links 1 -delete && "
            f"ln -sfn releases/{self.before} .back && "
            f"mv -T .back current && sed -i /{self.after}/d history.jsonl && sync .",
        )
        self.lab.as_root(name, "systemctl restart small")
        assert eventually(lambda: self.listens(name))
        self.note_files(name)

    @contextmanager
    def held(self, name: str, point: Point) -> Iterator[Hold]:
        """Have the next deployment wait at a point on one machine, once."""
        text = _HOLDER.format(**asdict(point), hold=HOLD, held=HELD)
        self.lab.output(name, f"cat > /tmp/holder <<'END'\n{text}END\ntouch {HOLD}")
        self.lab.as_root(name, f"install -m 755 /tmp/holder /usr/local/bin/{point.program}")
        hold = Hold(self.lab, name)
        try:
            yield hold
        finally:
            hold.end()

    def half_pushed(self, name: str, started: Started) -> None:
        """Wait until a part of the new wheels has come to a machine."""
        base = self.arrived(name)
        started.reaches(lambda: self.arrived(name) > base + NEW_BYTES // 8, "nothing came", 60)

    def assert_finishes(self) -> None:
        """The same command brings the new release to both, nothing is lost, and then there is nothing to do.

        A machine that has not seen how its controller went keeps it locked for half a minute.
        """
        assert eventually(lambda: self.new("deploy").code == 0, 40), self.new("deploy")
        assert self.in_use() == [self.after] * 2
        for name in (A, B):
            assert self.after in self.complete(name)
            self.assert_no_file_lost(name)
        assert self.new.works("deploy").out == "nothing to do\n"


def make_small(lab: Lab, checkout: Checkout, project: Manifest, wheels: Path) -> Small:
    """Lay out both stacks in the copy of the project, and bring the old release into use."""
    releases = {name: lay_out(checkout, name, chosen, project, wheels).release for name, chosen in _STACKS.items()}
    lines = {
        name: checkout.variant(
            name,
            (f'stack = "{checkout.cluster.stack}"', f'stack = "{name}"'),
            ('user = "spark"', f'user = "spark"\nroot = "{FOLDER}"'),
        )
        for name in _STACKS
    }
    small = Small(lab, lines["small-old"], lines["small-new"], releases["small-old"], releases["small-new"])
    small.old.works("deploy")
    for name in (A, B):
        lab.output(name, f"cat > /tmp/small.service <<'END'\n{UNIT}END")
        lab.as_root(name, "install -m 644 /tmp/small.service /etc/systemd/system/ && systemctl enable --now -q small")
    return small


def forget_small(lab: Lab) -> None:
    """Take all of it off the machines."""
    for name in (A, B):
        lab.as_root(name, "systemctl disable --now -q small; rm -f /etc/systemd/system/small.service /usr/local/bin/*")
        lab.as_root(name, f"rm -rf {FOLDER} /var/tmp/small.sums && systemctl daemon-reload")


_STACKS = {"small-old": OLD, "small-new": NEW}


def lay_out(checkout: Checkout, name: str, chosen: tuple[str, ...], project: Manifest, wheels: Path) -> Manifest:
    """Write a stack, and its manifest beside wheels that share their bytes with the project's; return the manifest."""
    (checkout.folder / "config" / "stacks" / f"{name}.toml").write_text(STACK, encoding="utf-8")
    stack = Stack(name=name, description="", lock=Path("x"), platforms=(), python=(), components={})
    listed = tuple(wheel for wheel in project.wheels if wheel.name in chosen)
    text = lock_text(stack, project.target, listed)
    manifest = project.model_copy(
        update={"stack": name, "wheels": listed, "lock_sha256": hashlib.sha256(text.encode()).hexdigest()}
    )
    place = checkout.folder / "dist" / name / project.target.tag
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    for wheel in listed:
        os.link(wheels / wheel.filename, place / wheel.filename)
    (place / "stack.lock").write_text(text, encoding="utf-8")
    (place / "manifest.json").write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
    return manifest
