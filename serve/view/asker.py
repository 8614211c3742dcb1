"""One real request to the API; runs on the head with its own Python, as root: the key is read there and stays there.

asker.py SERVICE_FILE KEY_FILE TOKENS     prints {"tokens": N, "seconds": S, "error": TEXT}
"""

from __future__ import annotations

import http.client
import json
import re
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

PATIENCE = 240
"""Seconds without a byte after which there is no answer."""


def address(service: dict[str, Any]) -> tuple[str, int, str]:
    """Return host, port and path of the API. Behind TLS the model server itself is asked, on loopback."""
    url = urlsplit(service["api"]["url"])
    port, path = url.port or 80, url.path.rstrip("/") or "/v1"
    return ("127.0.0.1" if service["api"].get("tls") else str(url.hostname)), port, path


def one_key(path: str) -> str:
    """Return the key; what is none is not shown by the error either. Raises ValueError."""
    key = Path(path).read_text().strip()
    if re.fullmatch(r"[0-9A-Za-z_-]+", key) is None:
        raise ValueError(f"{path} does not hold one key")
    return key


def call(place: tuple[str, int, str], key: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """Ask and return the answer. No proxy is used and no redirection followed: the key goes to this address only."""
    host, port, base = place
    connection = http.client.HTTPConnection(host, port, timeout=PATIENCE)
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    try:
        connection.request("POST" if body else "GET", base + path, json.dumps(body) if body else None, headers)
        reply = connection.getresponse()
        text = reply.read(1 << 20).decode(errors="replace")
    finally:
        connection.close()
    if reply.status != 200:
        raise ValueError(f"HTTP {reply.status}: {text[:200].replace(key, 'KEY')}")
    answer: dict[str, Any] = json.loads(text)
    return answer


def ask(service: str, key_file: str, tokens: int) -> dict[str, Any]:
    """Ask for this many tokens; return how many came in how many seconds, or why none did."""
    began = time.monotonic()
    try:
        place = address(json.loads(Path(service).read_text()))
        key = one_key(key_file)
        model = call(place, key, "/models")["data"][0]["id"]
        # not as a chat: a model without a template for one answers too
        prompt = "Count from one to one hundred."
        body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        usage = call(place, key, "/completions", body)["usage"]
        return {"tokens": int(usage["completion_tokens"]), "seconds": time.monotonic() - began, "error": ""}
    except (OSError, ValueError, LookupError, TypeError, http.client.HTTPException) as error:
        return {"tokens": 0, "seconds": time.monotonic() - began, "error": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    print(json.dumps(ask(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
