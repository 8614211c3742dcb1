"""The question for one token, as a command on the head: the only proof that a model answers through every rank.

`/health` can answer 200 while no token ever comes, so it is not asked.
"""

from __future__ import annotations

# Runs on the head with the system's Python: one token, our units' states, and the last lines of one that ended
# (of its last run only: an older one may have failed of something else).
_ASK = """
import json, subprocess, sys, urllib.error, urllib.request
url, model, timeout, *units = sys.argv[1:]
body = {"model": model, "max_tokens": 1, "temperature": 0, "messages": [{"role": "user", "content": "hello"}]}
headers = {"Content-Type": "application/json"}
request = urllib.request.Request(url + "/chat/completions", json.dumps(body).encode(), headers)
answer = {"tokens": 0, "error": "", "units": {}, "log": ""}
try:
    with urllib.request.urlopen(request, timeout=float(timeout)) as reply:
        answer["tokens"] = json.load(reply)["usage"]["completion_tokens"]
except urllib.error.HTTPError as error:
    answer["error"] = f"HTTP {error.code}: {error.read(500).decode(errors='replace')}"
except (OSError, ValueError, KeyError) as error:
    answer["error"] = str(error)
def out(*argv):
    return subprocess.run(argv, capture_output=True, text=True, errors="replace").stdout
for unit in units:
    state = out("systemctl", "is-active", unit).strip()
    answer["units"][unit] = state
    if state == "failed":
        run = out("systemctl", "show", unit, "--property=InvocationID", "--value").strip()
        answer["log"] += out("journalctl", "_SYSTEMD_INVOCATION_ID=" + run, "-o", "cat", "-n", "400")
print(json.dumps(answer))
"""


def ask_argv(url: str, model: str, units: tuple[str, ...] = (), timeout: float = 30) -> tuple[str, ...]:
    """Return the argv that asks for one token on the head; ``timeout`` in seconds."""
    return ("python3", "-c", _ASK, url, model, str(timeout), *units)
