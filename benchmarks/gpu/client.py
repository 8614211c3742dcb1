"""What runs on a machine of the GPU host: vLLM's own benchmark many times in one process, and a balancer.

client.py bench URL FOLDER N     the tests, N times in rounds; a JSON line for each run
client.py balance PORT A B       connections to PORT go to the addresses in turn
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

NAME = "qwen2.5-32b"
TESTS: Mapping[str, Sequence[str]] = {
    "single": ("512", "128", "2", "inf", "1"),
    "low": ("512", "256", "30", "2", ""),
    "short": ("256", "128", "50", "inf", ""),
    "long": ("512", "512", "100", "inf", ""),
}
"""Input and output tokens, requests, rate, concurrency: the guide's three and one stream."""


def client(given: argparse.Namespace) -> None:
    """Warm up, then run every test so many times in rounds; print the figures of each run as a JSON line."""
    from vllm.benchmarks.serve import add_cli_args, main_async  # noqa: PLC0415 - only there

    parser = argparse.ArgumentParser()
    add_cli_args(parser)
    folder, seed = Path(given.folder), int(time.time()) % 100_000 * 1000
    folder.mkdir(parents=True, exist_ok=True)
    names = given.tests.split(",")

    def run(name: str, number: int, output: str = "") -> None:
        tokens, answer, prompts, rate, limit = TESTS[name]
        target = folder / f"{name}-{number}.json"
        words = ["--backend", "openai", "--base-url", given.url, "--endpoint", "/v1/completions"]
        words += ["--model", given.model, "--served-model-name", NAME, "--dataset-name", "random"]
        words += ["--random-input-len", tokens, "--random-output-len", output or answer, "--num-prompts", prompts]
        words += ["--request-rate", rate, *(["--max-concurrency", limit] if limit else []), "--ignore-eos"]
        words += [
            "--temperature",
            "0",
            "--seed",
            str(seed + 10 * number + names.index(name)),
            "--ready-check-timeout-sec",
            "60",
        ]
        words += ["--percentile-metrics", "ttft,tpot,itl", "--metric-percentiles", "99", "--disable-tqdm"]
        words += ["--save-result", "--result-dir", str(folder), "--result-filename", target.name]
        with contextlib.redirect_stdout(sys.stderr):
            asyncio.run(main_async(parser.parse_args(words)))
        if number:
            found = json.loads(target.read_text())
            kept = {key: value for key, value in found.items() if not isinstance(value, list)}
            print(json.dumps({"test": name, "run": number, **kept}), flush=True)

    run(names[-1], 0, "32")
    for number in range(1, given.repeats + 1):
        for name in names:
            run(name, number)


def balance(given: argparse.Namespace) -> None:
    """Hand connections to the addresses in turn."""
    turn = itertools.cycle([address.split(":") for address in given.backs])

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        address, port = next(turn)
        try:
            inner, outer = await asyncio.open_connection(address, int(port))
        except OSError:
            writer.close()
            return
        await asyncio.gather(pump(reader, outer), pump(inner, writer))

    async def main() -> None:
        server = await asyncio.start_server(take, "0.0.0.0", given.port, backlog=512)  # noqa: S104 - a throwaway host
        await server.serve_forever()

    asyncio.run(main())


def words() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("bench")
    one.add_argument("url")
    one.add_argument("folder")
    one.add_argument("repeats", type=int)
    one.add_argument("--tests", default=",".join(TESTS))
    one.add_argument("--model", default="/opt/model")
    one.set_defaults(action=client)
    two = commands.add_parser("balance")
    two.add_argument("port", type=int)
    two.add_argument("backs", nargs="+")
    two.set_defaults(action=balance)
    return parser.parse_args()


if __name__ == "__main__":
    chosen = words()
    chosen.action(chosen)
