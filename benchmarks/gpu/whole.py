"""The suite on the two machines of a GPU host, command by command, as on two Sparks.

Runs as root on the host, in the project's root, with the suite's own environment (suite.sh makes both):

    whole.py OUT --seconds N [--cards 1]

Every command's output goes to OUT/NN-NAME.log, its time and exit code to OUT/commands.json. What a later command
needs and did not come ends the run; everything else goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.machines import KILL_RANK, B, gpu_memory, ssh
from core.process import run

HERE = Path("benchmarks/gpu")
PAIR, ONE = str(HERE / "pair.toml"), str(HERE / "one.toml")
SUITE = str(HERE / "suite.toml")
INVOKE = str(Path(sys.executable).parent / "invoke")


@dataclass(frozen=True)
class Command:
    """A command of the suite; ``needed``: without it nothing after it makes sense. ``least``: seconds that it takes."""

    name: str
    words: tuple[str, ...]
    needed: bool = False
    fine: tuple[int, ...] = (0,)
    least: float = 20


def profile(name: str) -> str:
    """Return the path of a profile of this folder."""
    return str(HERE / "profiles" / f"{name}.toml")


def served(name: str, cluster: str) -> tuple[Command, Command]:
    """Serve a profile and look at it."""
    return (
        Command(f"serve-{name}", ("serve", "-c", cluster, "-p", profile(name)), least=150),
        Command(f"status-{name}", ("status", "-c", cluster, "--json", *(("--probe",) if cluster == PAIR else ()))),
    )


def measured(name: str, cluster: str, suite: str, out: Path) -> Command:
    """Measure what is served; the result goes to the folder."""
    words = ("bench", "-c", cluster, "-p", profile(name), "-s", suite, "-o", str(out / f"{name}.json"), "-t", name)
    return Command(f"bench-{name}", words, least=60)


def beginning(first: str, out: Path) -> tuple[Command, ...]:
    """From two bare machines to a release on both."""
    return (
        Command("trust", ("trust", "-c", PAIR, "--yes"), needed=True),
        Command("facts", ("facts", "-c", PAIR, "--save", str(out / "facts.json"))),
        Command("build-wheels", ("build-wheels", "-c", PAIR), needed=True),
        Command("deploy", ("deploy", "-c", PAIR), needed=True),
        Command("doctor", ("doctor", "-c", PAIR, "-p", profile(first), "--link"), fine=(0, 25, 29)),
        Command("probe", ("probe", "-c", PAIR, "--json")),
    )


class Host:
    """Runs commands, keeps what they said, and knows what time is left."""

    def __init__(self, out: Path, seconds: float) -> None:
        self.out, self.until, self.done = out, time.monotonic() + seconds, list[dict[str, Any]]()
        out.mkdir(parents=True, exist_ok=True)

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.until - time.monotonic()

    def run(self, command: Command) -> bool:
        """Run a command of the suite; whether it ended well. Raises SystemExit where what follows needs it."""
        if self.left < command.least:
            self.note(command.name, {"not run": f"{self.left:.0f} s are left"})
            return False
        began, log = time.monotonic(), self.out / f"{len(self.done):02d}-{command.name}.log"
        done = run([INVOKE, *command.words], check=False)
        log.write_text(done.out + done.err, encoding="utf-8")
        fine = done.code in command.fine
        seconds = round(time.monotonic() - began, 1)
        self.note(command.name, {"words": command.words, "code": done.code, "seconds": seconds})
        if not fine:
            print(done.tail(40), flush=True)
            if command.needed:
                (self.out / "done").write_text("ended early\n")
                raise SystemExit(1)
        return fine

    def note(self, name: str, what: dict[str, Any]) -> None:
        """Keep and print what became of a command."""
        self.done.append({"name": name, "at": time.strftime("%H:%M:%S"), **what})
        (self.out / "commands.json").write_text(json.dumps(self.done, indent=1))
        print(json.dumps(self.done[-1]), flush=True)

    def fault(self, name: str, cluster: str) -> None:
        """Kill the second machine's rank; keep what the cards hold and whether it serves, until it serves again."""
        if self.left < 150:
            self.note(f"fault-{name}", {"not run": f"{self.left:.0f} s are left"})
            return
        rows, began = [{"at": 0.0, "memory_mib": gpu_memory(), "status": "before"}], time.monotonic()
        killed = ssh(B, KILL_RANK, root=True).stdout
        while (after := time.monotonic() - began) < 240:
            memory = gpu_memory()
            code = run([INVOKE, "status", "-c", cluster], check=False).code
            rows.append({"at": round(after, 1), "memory_mib": memory, "status": code})
            if code == 0 and any(row["status"] not in (0, "before") for row in rows):
                break
            time.sleep(1)
        (self.out / f"fault-{name}.json").write_text(json.dumps({"killed": killed, "rows": rows}, indent=1))
        self.note(f"fault-{name}", {"killed": killed.strip(), "back after": rows[-1]["at"]})


def both(host: Host, names: Sequence[str], suite: str) -> None:
    """Serve, measure and break every profile of two ranks."""
    for name in names:
        serve, look = served(name, PAIR)
        if host.run(serve):
            host.run(look)
            host.run(measured(name, PAIR, suite, host.out))
            host.fault(name, PAIR)
        host.run(Command(f"logs-{name}", ("logs", "-c", PAIR), fine=(0, 40)))


def alone(host: Host, names: Sequence[str]) -> None:
    """Serve and measure every profile of one rank, on the first machine."""
    host.run(Command("trust-one", ("trust", "-c", ONE, "--yes")))
    for name in names:
        serve, look = served(name, ONE)
        if host.run(serve):
            host.run(look)
            host.run(measured(name, ONE, SUITE, host.out))
        host.run(Command(f"logs-{name}", ("logs", "-c", ONE), fine=(0, 40)))
    host.run(Command("stop-one", ("stop", "--all", "-c", ONE)))


def main() -> None:
    """Run everything, what matters most first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out")
    parser.add_argument("--seconds", type=float, default=1200)
    parser.add_argument("--cards", type=int, default=1)
    given = parser.parse_args()
    pair, suite = (("shared-ray", "shared-mp"), "quick") if given.cards == 1 else (("guide", "mp-graphs"), SUITE)
    host = Host(Path(given.out), given.seconds)
    for command in beginning(pair[0], host.out):
        host.run(command)
    both(host, pair, suite)
    host.run(Command("stop", ("stop", "--all", "-c", PAIR)))
    host.note("cards", {"memory_mib": gpu_memory()})
    if given.cards == 1:
        alone(host, ("one-graphs", "one-eager"))
    (host.out / "done").write_text("done\n")


if __name__ == "__main__":
    main()
