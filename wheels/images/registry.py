"""A session with a registry of images (OCI distribution specification): tokens, patience, redirects.

Authorization goes to the registry's own address and to the token server that it names, nowhere else. What is asked
goes over https; http is for loopback addresses only.
"""

from __future__ import annotations

import json
import logging
import ssl
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from socket import gaierror
from typing import Self

import httpx

from core.download import SILENCE, public, without_secrets
from core.errors import RegistryRefused
from core.plan import Report
from wheels.images.login import NGC, NGC_KEY, Challenge, Credentials, bearer, challenges, credentials, scrub
from wheels.images.patience import BUSY, Patience
from wheels.images.reference import HUB, HUB_SERVER, is_loopback

for _library in ("httpx", "httpcore"):  # they log signed URLs, whoever else wants to see everything
    logging.getLogger(_library).setLevel(logging.WARNING)

REDIRECTS = (301, 302, 303, 307, 308)
MOST_REDIRECTS = 5
LARGEST_ANSWER = 4 * 1024**2
"""Bytes of an answer that is read whole."""
REPEATABLE = ("GET", "HEAD", "PUT", "DELETE")
_PROBE = 5
"""Seconds in which a registry on loopback says whether it speaks https."""


@dataclass(frozen=True)
class Answer:
    """An answer, its ``body`` read whole, or empty for a stream. ``url`` and headers may be signed: not to be shown."""

    status: int
    headers: httpx.Headers = field(repr=False)
    body: bytes = field(repr=False)
    url: httpx.URL = field(repr=False)
    reason: str = ""
    stream: httpx.Response | None = field(default=None, repr=False)

    @property
    def location(self) -> str:
        """Where the answer sends us, as an absolute URL. It may be signed: it is not to be shown."""
        return str(_joined(self.url, self.headers.get("Location", "")))

    def blocks(self) -> Iterator[bytes]:
        """Yield the body of a stream as it comes. Raises httpx.TransportError when it breaks off."""
        assert self.stream is not None
        return self.stream.iter_raw()


@dataclass(frozen=True)
class _Question:
    """A request; its Authorization goes to ``home`` only."""

    method: str
    url: httpx.URL = field(repr=False)
    home: httpx.URL
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | Path | None = field(default=None, repr=False)
    authorization: str = field(default="", repr=False)
    for_token: bool = False


class Registry:
    """One repository of a registry, to read from or, with ``push``, to write to as well. Nothing is asked at once."""

    def __init__(self, host: str, repository: str, report: Report, *, push: bool = False) -> None:
        self.host = host
        self.repository = repository
        self._report = report
        self._actions = "pull,push" if push else "pull"
        self._credentials = credentials(host, repository)
        self._authorization = ""
        self._here = is_loopback(httpx.URL(f"https://{host}/").host)
        self._home: httpx.URL | None = None
        self._open = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    @cached_property
    def _web(self) -> httpx.Client:
        # the proxy variables are for other hosts; trust comes from the system or SSL_CERT_FILE
        verify, headers = ssl.create_default_context(), {"User-Agent": "sparkstack", "Accept-Encoding": "identity"}
        client = httpx.Client(timeout=SILENCE, verify=verify, trust_env=not self._here, headers=headers)
        return self._open.enter_context(client)

    @property
    def name(self) -> str:
        """Registry and repository."""
        return f"{self.host}/{self.repository}"

    def patience(self) -> Patience:
        """Return the count of tries for a transfer of several requests."""
        return Patience(self.host, self._report)

    def request(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: bytes | Path | None = None,
        accept: Collection[int] = (200,),
    ) -> Answer:
        """Ask for ``path`` below /v2/REPOSITORY/ (or for an upload's absolute location) and read the answer, 4 MiB.

        A file as ``content`` is sent block by block. What may be asked twice is, after a broken connection; after
        429 and 503 everything is. Raises RegistryRefused when that does not help, and for every other status than
        those in ``accept``.
        """
        question = self._question(method, path, headers, content)
        answer = self._answered(question, self.patience(), whole=True)
        if answer.status not in accept:
            raise self.refused(answer, question.url)
        return answer

    @contextmanager
    def stream(self, path: str, headers: Mapping[str, str], patience: Patience) -> Iterator[Answer]:
        """Give the answer to a GET, whatever its status, a good one's body not read yet: see Answer.blocks()."""
        answer = self._answered(self._question("GET", path, headers, None), patience, whole=False)
        try:
            yield answer
        finally:
            if answer.stream:
                answer.stream.close()

    def refused(self, answer: Answer, asked: httpx.URL | None = None) -> RegistryRefused:
        """Return the error for an answer that is none of those hoped for; shows what the registry says of it."""
        if answer.status in {401, 403} and self._is_home(answer.url):
            return self._not_let_in(answer)
        what = _called(asked or answer.url)
        who = self.host if self._is_home(answer.url) else f"{answer.url.host}, where {self.host} sends us,"
        cause = f"{who} answered {answer.status} {answer.reason} for {what} of {self.name}"
        next_move = "run the same command again later"
        if answer.status == 404:
            cause = f"{self.name} has no {what}"
            next_move = f"look at the name, the tag and the digest (`skopeo list-tags docker://{self.name}`)"
        return RegistryRefused(cause, next_move=next_move, evidence=self._words(answer))

    def _question(
        self, method: str, path: str, headers: Mapping[str, str] | None, content: bytes | Path | None
    ) -> _Question:
        home = self._at_home()
        url = self._checked(httpx.URL(path)) if "://" in path else home.join(f"/v2/{self.repository}/{path}")
        return _Question(method, url, home, headers or {}, content, self._authorization)

    def _at_home(self) -> httpx.URL:
        """Return the registry's address; on loopback http where https is not spoken, as Docker does."""
        if self._home is None:
            secure = httpx.URL(f"https://{HUB_SERVER if self.host == HUB else self.host}/")
            self._home = secure if not self._here or self._speaks_https(secure) else secure.copy_with(scheme="http")
        return self._home

    def _speaks_https(self, url: httpx.URL) -> bool:
        try:
            self._web.get(url.join("/v2/"), timeout=_PROBE)
        except httpx.TransportError as error:
            return _untrusted(error)
        return True

    def _is_home(self, url: httpx.URL) -> bool:
        return _origin(url) == _origin(self._at_home())

    def _answered(self, question: _Question, patience: Patience, *, whole: bool) -> Answer:
        """Ask until there is an answer that is not about our token, and not that somebody is busy."""
        fresh = False  # a token that is refused at once is not asked for again
        while True:
            answer = self._tried(question, patience, whole=whole)
            if answer.status == 401 and not fresh and not question.for_token and self._is_home(answer.url):
                self._authorize(answer)
                question = replace(question, authorization=self._authorization)
                fresh = True
            elif answer.status in BUSY and _may_repeat(question.method, answer.status):
                patience.after_busy(answer.status, answer.headers)
                fresh = False
            else:
                return answer

    def _tried(self, question: _Question, patience: Patience, *, whole: bool) -> Answer:
        """Return an answer, asked for again after broken connections; what is no good one is read whole."""
        while True:
            try:
                response = self._followed(question)
                is_stream = not whole and response.status_code < 400
                body = b"" if is_stream else _read(response, self.host)
            except httpx.TransportError as error:
                sent = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
                if _hopeless(error) or (sent and question.method not in REPEATABLE):
                    raise self.broken(error) from error
                patience.after_break(explained(error))
            else:
                stream = response if is_stream else None
                return Answer(
                    response.status_code, response.headers, body, response.url, response.reason_phrase, stream
                )

    def broken(self, error: httpx.TransportError) -> RegistryRefused:
        """Return the error for a connection that cannot be made."""
        next_move = "look at network and proxy, run the same command again"
        if _untrusted(error):
            next_move = "name a file with the certificate of whoever signs it in SSL_CERT_FILE; look who answers there"
        return RegistryRefused(f"{self.host} cannot be reached: {explained(error)}", next_move=next_move)

    def _followed(self, question: _Question) -> httpx.Response:
        """Send a question where redirects lead (reading only), without Authorization to others than its home."""
        url = question.url
        for _ in range(MOST_REDIRECTS + 1):
            response = self._sent(question, url)
            if response.status_code not in REDIRECTS or question.method not in {"GET", "HEAD"}:
                return response
            response.close()
            url = self._checked(_joined(url, response.headers.get("Location", "")))
        raise RegistryRefused(
            f"{self.host} sends us from one address to the next, {MOST_REDIRECTS} times",
            next_move="run the same command again later",
        )

    def _sent(self, question: _Question, url: httpx.URL) -> httpx.Response:
        at_home = question.authorization and _origin(url) == _origin(question.home)
        headers = {**question.headers, **({"Authorization": question.authorization} if at_home else {})}
        with ExitStack() as files:
            content = question.content
            body = files.enter_context(content.open("rb")) if isinstance(content, Path) else content
            return self._web.send(
                self._web.build_request(question.method, url, headers=headers, content=body), stream=True
            )

    def _checked(self, url: httpx.URL) -> httpx.URL:
        """Return a URL that the registry gave us; raise RegistryRefused for one that must not be asked."""
        plain = url.scheme == "http" and self._at_home().scheme == "http" and is_loopback(url.host)
        if not url.host or url.userinfo or not (url.scheme == "https" or plain):
            raise RegistryRefused(
                f"{self.host} sends us to {public(str(url))[:200]}, which is no https address",
                next_move="do not use that registry; tell those who run it",
            )
        return url

    def _authorize(self, answer: Answer) -> None:
        """Get what the registry asks for: a token, or our password itself."""
        asked = {challenge.scheme: challenge for challenge in challenges(answer.headers.get_list("WWW-Authenticate"))}
        if "bearer" in asked:
            self._authorization = f"Bearer {self._token(asked['bearer'])}"
        elif "basic" in asked and self._credentials and self._authorization != self._credentials.basic():
            self._authorization = self._credentials.basic()
        else:
            raise self._not_let_in(answer)

    def _token(self, challenge: Challenge) -> str:
        """Ask the token server that the registry names, for no more than we need."""
        realm = self._checked(_joined(self._at_home(), challenge.parameters.get("realm", "")))
        service = challenge.parameters.get("service")
        wanted = {"scope": f"repository:{self.repository}:{self._actions}"} | ({"service": service} if service else {})
        key = self._credentials.basic() if self._credentials else ""
        question = _Question("GET", realm.copy_merge_params(wanted), realm, authorization=key, for_token=True)
        answer = self._answered(question, Patience(realm.host, self._report), whole=True)
        if answer.status in {401, 403}:
            raise self._not_let_in(answer)
        if answer.status != 200:
            raise self.refused(answer)
        return bearer(realm.host, answer.body)

    def _not_let_in(self, answer: Answer) -> RegistryRefused:
        may = "write to" if "push" in self._actions else "read"
        if self._credentials:
            cause = f"{self.host} does not let us {may} {self.repository} with what {self._credentials.origin} holds"
            next_move = "look at the name; renew the key or password, or ask for the right to it"
        else:
            cause = f"{self.host} does not let us {may} {self.repository} without a password or key"
            login = f"set {NGC_KEY} to your API key" if self.host == NGC else f"log in with `skopeo login {self.host}`"
            next_move = f"look at the name; if it is private, {login} (credential helpers are not asked)"
        return RegistryRefused(cause, next_move=next_move, evidence=self._words(answer))

    def _words(self, answer: Answer) -> str:
        """Return what an answer with an error says, without our secrets; nothing where its form is another."""
        try:
            errors = json.loads(answer.body)["errors"]
            said = [f"{error['code']}: {error.get('message', '')}" for error in errors[:3]]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return ""
        return "\n".join(scrub(line, self._secrets()) for line in said)

    def _secrets(self) -> list[str]:
        known: Credentials | None = self._credentials
        own = [known.password, known.basic().partition(" ")[2]] if known else []
        return [*own, self._authorization.partition(" ")[2]]


def _read(response: httpx.Response, host: str) -> bytes:
    """Return a small answer's body, as it comes."""
    body = bytearray()
    with closing(response):
        for block in response.iter_raw():
            body += block
            if len(body) > LARGEST_ANSWER:
                raise RegistryRefused(
                    f"{host} answers with more than 4 MiB where a document was asked for",
                    next_move="do not use that image; look where it comes from",
                )
    return bytes(body)


def _joined(url: httpx.URL, location: str) -> httpx.URL:
    try:
        return url.join(location)
    except httpx.InvalidURL:
        raise RegistryRefused(
            f"{url.host} sends us to what is no address", next_move="run the same command again later"
        ) from None  # what it sent may be signed


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    port = url.port or {"https": 443, "http": 80}.get(url.scheme)
    return url.scheme, url.host.lower(), port


def _may_repeat(method: str, status: int) -> bool:
    """Say whether a busy server has certainly not done what was asked, or may do it twice."""
    return status in {429, 503} or method in REPEATABLE


def _called(url: httpx.URL) -> str:
    """Return what a URL asks for: "manifest 25.11-py3"."""
    kind, _, name = "/".join(url.path.rstrip("/").split("/")[-2:]).partition("/")
    return f"{ {'manifests': 'manifest', 'blobs': 'blob'}.get(kind, kind) } {name}"


def explained(error: httpx.TransportError) -> str:
    """Return what an error of a connection says, or its name."""
    return without_secrets(str(error))[:200] or type(error).__name__


def _causes(error: BaseException) -> Iterator[BaseException]:
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__


def _untrusted(error: httpx.TransportError) -> bool:
    return any(isinstance(cause, ssl.SSLCertVerificationError) for cause in _causes(error))


def _hopeless(error: httpx.TransportError) -> bool:
    """Say whether trying again cannot help: nobody has that name, or its certificate is not trusted."""
    return any(isinstance(cause, ssl.SSLCertVerificationError | gaierror) for cause in _causes(error))
