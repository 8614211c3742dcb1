"""Whether the deployed vLLM knows the flags of a profile, asked of its own parser before anything is stopped."""

from __future__ import annotations

import json

from core.errors import CommandFailed, ConfigError
from core.mistakes import nearest
from core.plan import Run
from core.process import Completed
from deploy.environment import interpreter
from serve.cluster import Service
from serve.commands import vllm_argv

# Runs on the head with the release's Python. Both parts of the parser have moved: the older places come last.
_ASK = """
import contextlib, importlib, io, json, sys
PARSERS = "vllm.utils.argparse_utils", "vllm.utils"
ARGUMENTS = "vllm.entrypoints.launchers.cli_args", "vllm.entrypoints.openai.cli_args"
def found(places, name):
    for place in places:
        with contextlib.suppress(ImportError, AttributeError):
            return getattr(importlib.import_module(place), name)
    sys.exit("vLLM has no " + name + " in " + ", ".join(places))
with contextlib.redirect_stdout(io.StringIO()):
    parser = found(ARGUMENTS, "make_arg_parser")(found(PARSERS, "FlexibleArgumentParser")())
words, said = sys.argv[1:], io.StringIO()
known = sorted({name for action in parser._actions for name in action.option_strings if name.startswith("--")})
try:
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        unknown = parser.parse_known_args(words)[1]
    error = ""
except SystemExit:
    unknown, error = [], said.getvalue().strip().splitlines()[-1]
unknown = [one for one in unknown if one.startswith("-")]
print("flags: " + json.dumps({"unknown": unknown, "error": error, "known": known}))
sys.exit(1 if unknown or error else 0)
"""


def check_step(service: Service) -> Run:
    """Return the step that asks the head's vLLM whether it can read the whole command."""
    python = interpreter(service.cluster, service.release)
    words = vllm_argv(service)[2:]  # without `vllm serve`
    quiet = ("env", "VLLM_LOGGING_LEVEL=ERROR", *(f"{key}={value}" for key, value in service.stack.environment.items()))
    return Run(
        node=service.cluster.head.name,
        title="check the flags",
        reason="one that this vLLM does not know is refused before anything stops",
        argv=(*quiet, str(python), "-c", _ASK, *words),
        timeout=180,
        failure=lambda done: refused(service, done),
    )


def refused(service: Service, done: Completed) -> Exception:
    """Return the error for what the parser said."""
    node = service.cluster.head.name
    lines = [line.removeprefix("flags: ") for line in done.out.splitlines() if line.startswith("flags: ")]
    if not lines:
        return CommandFailed(
            "vLLM's parser could not be asked",
            node=node,
            next_move=f"invoke doctor --cluster {service.cluster.flag}; the release may be broken",
            evidence=done.tail(10),
        )
    said = json.loads(lines[-1])
    unknown = ", ".join(f"{word}{_near(word, said['known'])}" for word in said["unknown"])
    cause = f"vLLM {service.vllm} does not know {unknown}" if unknown else f"vLLM refuses the flags: {said['error']}"
    return ConfigError(
        f"profile {service.profile.name}: {cause}",
        node=node,
        next_move=f"correct flags in config/profiles/{service.profile.name}.toml; nothing that served was stopped",
    )


def _near(word: str, known: list[str]) -> str:

    return nearest(word.partition("=")[0], known)
