"""The script that answers a probe: a request of commands and files in, JSON out; it reads and never writes."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping
from typing import Any

# Runs on the node with nothing but the standard library, reads and never writes. Process names are matched here so
# that other people's command lines never leave the node.
_PROBE = """
import glob, json, os, re, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
began = time.time()
os.environ["PATH"] += ":/usr/sbin:/sbin:/usr/local/cuda/bin"
os.environ["LC_ALL"] = "C"
request = json.loads(sys.argv[1])
def ask(argv):
    try:
        options = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "errors": "replace"}
        done = subprocess.run(argv, timeout=20, **options)
        return {"code": done.returncode, "out": done.stdout}
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"code": 127, "out": "", "error": str(error)}
commands = request["commands"]
listing = commands.pop("processes")  # apart, when no other runs that names what it searches for
with ThreadPoolExecutor(4) as pool:  # one that waits (ping, a question for a token) holds up no other
    facts = dict(zip(commands, pool.map(ask, commands.values())))
facts["processes"] = ask(listing)
for name, patterns in request["files"].items():
    found = {}
    for path in sorted(p for pattern in patterns for p in glob.glob(pattern)):
        try:
            with open(path, errors="replace") as file:
                found[path] = file.read()
        except OSError:
            continue
    facts[name] = {"code": 0, "files": found}
ours = re.compile(request["ours"])
lines = facts["processes"]["out"].split("\\n")
facts["processes"]["out"] = "".join(line + "\\n" for line in lines if ours.search(line))
facts["clock"] = {"code": 0, "out": "%.3f %.3f\\n" % (began, time.time())}
print(json.dumps(facts))
"""


def probe_argv(request: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the argv of the probe; packed, so that its own command line does not look like what it searches for."""
    packed = base64.b64encode(zlib.compress(_PROBE.encode())).decode()
    asked = base64.b64encode(zlib.compress(json.dumps(request).encode())).decode()
    code = (
        "import sys,zlib,base64 as b;u=lambda t:zlib.decompress(b.b64decode(t)).decode();"
        "c=u(sys.argv[1]);sys.argv[1:]=[u(sys.argv[2])];exec(c)"
    )
    return ("python3", "-I", "-S", "-c", code, packed, asked)
