"""HTTP as the fetch needs it: proxies from the environment, a token for one host only, patience with what passes.

https://docs.python.org/3/library/urllib.request.html: headers that are not "unredirected" follow every redirect, so a
token must never be among those.
"""

from __future__ import annotations

import http.client
import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from typing import IO, Any
from urllib.parse import urlsplit

from deploy.onnode.common import FEW, Again, Refused, broken, patiently

TIMEOUT = 60
LARGEST_LIST = 64 << 20
AGENT = "sparkstack-model-fetch/1"

Explain = Callable[[int, Message], "Refused | None"]


def origin(url: str) -> tuple[str, str, int]:
    """Return scheme, host and port."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or {"https": 443}.get(parts.scheme, 80)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, with the token only to where it belongs, and never from https to http."""

    def __init__(self, home: str, private: Mapping[str, str]) -> None:
        self._home, self._private = home, private

    def redirect_request(  # noqa: PLR0917 - urllib's own
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        made = super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]
        if made is None:
            return None
        if made.type not in ("https", req.type):
            raise Refused("hub", f"{req.host} sends us on to {made.host} without TLS", "check HF_ENDPOINT")
        _add_private(made, self._home, self._private)
        return made

    def http_error_302(self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message) -> Any:
        """Follow it, or close the answer: urllib leaves one open that leads to no address."""
        try:
            return super().http_error_302(req, fp, code, msg, headers)  # type: ignore[arg-type]
        except (ValueError, Refused):
            fp.close()
            raise

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _add_private(request: urllib.request.Request, home: str, private: Mapping[str, str]) -> None:
    if origin(request.full_url) == origin(home):
        for name, value in private.items():
            request.add_unredirected_header(name, value)


@dataclass(frozen=True)
class Client:
    """A hub's address, and the headers that no other host may see."""

    home: str
    private: Mapping[str, str] = field(default_factory=dict, repr=False)
    explain: Explain = lambda _code, _headers: None

    def open(self, url: str, start: int = 0) -> http.client.HTTPResponse:
        """Ask for ``url`` from a byte on. Raises Again for what passes, Refused for all else."""
        headers = {"User-Agent": AGENT, "Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        request = urllib.request.Request(url, headers=headers)  # noqa: S310 - hubs.py lets in http and https only
        _add_private(request, self.home, self.private)
        opener = urllib.request.build_opener(_Redirects(self.home, self.private))
        try:
            answer: http.client.HTTPResponse = opener.open(request, timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            with error:
                raise self._judged(error) from error
        except (OSError, http.client.HTTPException) as error:
            raise broken(error) from error
        except ValueError as error:
            cause = f"{origin(url)[1]} leads to something that is no address: {error}"
            raise Refused("hub", cause, "check HF_ENDPOINT") from error
        return answer

    def _judged(self, error: urllib.error.HTTPError) -> Again | Refused:
        at_home = origin(error.url) == origin(self.home)
        where = urlsplit(error.url).hostname
        if error.code in (408, 429) or error.code >= 500:
            return Again(f"{where} answers {error.code}", _wait(error.headers))
        if not at_home and error.code in (401, 403, 404, 410):
            return Again(f"{where} answers {error.code}: the address it was given is spent")
        known = self.explain(error.code, error.headers) if at_home else None
        return known or Refused("hub", f"{where} answers {error.code} {error.reason}", "try again later")

    def json(self, url: str) -> tuple[Any, Message]:
        """Return a JSON answer and its headers, with patience. Raises Refused."""
        found: tuple[Any, Message] = patiently(lambda: self._json(url), to_nobody=FEW)
        return found

    def _json(self, url: str) -> tuple[Any, Message]:
        with self.open(url) as answer:
            try:
                body = answer.read(LARGEST_LIST + 1)
            except (OSError, http.client.HTTPException) as error:
                raise broken(error) from error
            if len(body) > LARGEST_LIST:
                raise Refused("hub", "its list of files is larger than 64 MiB", "look at the repository by hand")
            try:
                return json.loads(body), answer.headers
            except (ValueError, RecursionError) as error:
                where = urlsplit(url).hostname
                raise Refused(
                    "hub", f"{where} answers something that is no JSON", "check HF_ENDPOINT, proxies"
                ) from error


def _wait(headers: Message) -> float:
    """Return the seconds that a server asks for: `Retry-After: 5`, or `RateLimit: "api";r=0;t=5`."""
    after = headers.get("Retry-After", "").strip()
    limit = re.search(r"\bt=(\d+)", headers.get("RateLimit", ""))
    return float(after) if after.isdecimal() else float(limit[1]) if limit else 0.0
