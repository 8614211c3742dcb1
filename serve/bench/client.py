"""The load: `vllm bench serve` of the release in use, on the head, as a unit of its own. Pure.

The API's key is read by systemd and given to the unit as a credential (systemd.exec(5), LoadCredential=): it is in no
argument, and in the environment of the benchmark alone, where vLLM looks for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from core.config import Cluster
from core.errors import NotServing
from core.facts import NodeFacts
from core.parsers import record_or_none
from core.plan import Job
from deploy.environment import interpreter
from serve.bench.suite import Test
from serve.cluster import Service
from serve.files import NODE_ENV, WANTED

UNIT = "sparkstack-bench"
KEY = "/etc/sparkstack/credentials/api-key"
LOG = "/run/sparkstack-bench.log"
RESULT = "RESULT "
"""What the line begins with that holds the figures."""
TIMEOUT = 3600
"""Seconds for one test; the guide's longest takes 260 on two Sparks."""
WARM_OUTPUT = 16
"""Tokens of each answer while warming up: enough for every kernel to be chosen and compiled."""

# Runs on the head with the system's Python, as the cluster's user.
_CLIENT = """
import json, os, pathlib, subprocess, sys, tempfile
environment = dict(os.environ)
folder = environment.pop("CREDENTIALS_DIRECTORY", None)
key = pathlib.Path(folder, "api-key").read_text().strip() if folder else "-"
if key != "-":
    environment["OPENAI_API_KEY"] = key
with tempfile.TemporaryDirectory(prefix="sparkstack-bench-") as folder:
    saved = pathlib.Path(folder, "result.json")
    argv = [*sys.argv[1:], "--save-result", "--result-dir", folder, "--result-filename", saved.name]
    done = subprocess.run(argv, env=environment, cwd=folder, stdin=subprocess.DEVNULL)
    if saved.is_file():
        print("RESULT " + json.dumps(json.loads(saved.read_text())), flush=True)
sys.exit(done.returncode)
"""


@dataclass(frozen=True)
class Load:
    """A test as it is sent to one API; ``seed`` decides its prompts."""

    test: Test
    seed: int
    url: str
    warm_up: bool = False

    @property
    def output(self) -> int:
        """Tokens of each answer."""
        return min(self.test.output, WARM_OUTPUT) if self.warm_up else self.test.output


@dataclass
class Heard:
    """What the lines of a job told: the figures, once they came."""

    figures: str = ""
    lines: list[str] = field(default_factory=list)

    def line(self, line: str) -> str:
        """Take a line; return what is shown of it."""
        if line.startswith(RESULT):
            self.figures = line.removeprefix(RESULT)
            return "done"
        self.lines.append(line)
        return line


def engine_url(cluster: Cluster, seen: NodeFacts) -> str:
    """Return where vLLM itself listens: behind TLS that is the head's loopback, and what is measured is vLLM."""
    said = record_or_none(seen.files.get(str(WANTED), ""))
    behind = cluster.with_tls() if dict(said.get("api") or {}).get("tls") else cluster
    return behind.engine_url.removesuffix("/v1")


def load_argv(service: Service, load: Load) -> tuple[str, ...]:
    """Return the benchmark's command; options that vLLM has had from 0.11 on."""
    test = load.test
    rate = f"{test.rate:g}" if test.rate else "inf"
    limit = ("--max-concurrency", str(test.concurrency)) if test.concurrency else ()
    return (
        *(str(interpreter(service.cluster, service.release).parent / "vllm"), "bench", "serve"),
        *("--backend", "openai", "--base-url", load.url, "--endpoint", "/v1/completions"),
        *("--model", str(service.model), "--served-model-name", service.profile.served_names[0]),
        *("--dataset-name", "random", "--random-input-len", str(test.input), "--random-output-len", str(load.output)),
        *("--num-prompts", str(test.prompts), "--request-rate", rate, *limit, "--ignore-eos"),
        *("--seed", str(load.seed), "--temperature", "0", "--ready-check-timeout-sec", "60"),
        *("--percentile-metrics", "ttft,tpot,itl", "--metric-percentiles", "99", "--disable-tqdm"),
    )


def load_job(service: Service, load: Load, heard: Heard, title: str, *, node: str = "") -> Job:
    """Return the step that sends the load and hears the figures."""
    return Job(
        node=node or service.cluster.head.name,
        title=title,
        reason=load.test.shape,
        argv=("python3", "-I", "-c", _CLIENT, *load_argv(service, load)),
        timeout=TIMEOUT,
        watch=heard.line,
        failure=failed,
        unit=UNIT,
        user=service.cluster.user,
        properties=(
            f"LoadCredential=api-key:{KEY}",
            "SetCredential=api-key:-",  # where the file is not there: the API asks for none
            f"EnvironmentFile=-{NODE_ENV}",
            "LimitNOFILE=65536",
        ),
        log=LOG,
        hint=f"systemctl stop {UNIT}",
        privileged=True,
    )


def failed(how: str, lines: Sequence[str]) -> NotServing:
    """Return the error for a benchmark that ended badly."""
    return NotServing(
        f"vLLM's benchmark did not come to its end: {how}",
        next_move="invoke status shows whether the service answers; invoke logs what it says",
        evidence="\n".join(line for line in lines if not line.startswith(RESULT))[-2000:],
    )


def incomplete(test: Test, heard: Heard, node: str) -> NotServing:
    """Return the error for a run in which requests failed: its figures would be of another test."""
    completed = record_or_none(heard.figures).get("completed", 0)
    return NotServing(
        f"{completed} of {test.prompts} requests of the test {test.name} were answered",
        node=node,
        next_move="invoke logs says why; nothing of this run is counted",
        evidence="\n".join(heard.lines[-8:]),
    )
