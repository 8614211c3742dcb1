"""A GitHub on loopback: its answers are made from GitHub's published OpenAPI description, every request checked by it.

The description is the npm package @octokit/openapi, fetched once and checked by its hash.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import os
import re
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import pytest
from jsonschema import Draft202012Validator

from core.config import WORK
from core.process import run
from core.store import held
from tests.unit.faultyserver import Asked, Reply, Server, serving

PACKAGE = "@octokit/openapi@23.0.2"
INTEGRITY = "pV8M7L9GY23AybNvTmo2nyjmpmnt6+2sRE/tqr0ZLQcPS4lnw7u5eZGNmwRNkBC3D7gZXbFx5AHzLUVRBXGDhg=="
"""SHA-512 of the package, as npm writes it."""
PLACE = WORK / "tests" / "github"


def package() -> Path:
    """Return the package, downloaded once; skip the test where there is no npm, fail it under CI."""
    found = PLACE / "octokit-openapi-23.0.2.tgz"
    with held(PLACE / ".lock", "fetches GitHub's description", print):
        if not found.exists():
            if shutil.which("npm") is None:
                (pytest.fail if os.environ.get("CI") else pytest.skip)("npm is not here: apt-get install npm")
            run(["npm", "pack", "--silent", PACKAGE], cwd=PLACE, timeout=300)
    assert base64.b64encode(hashlib.sha512(found.read_bytes()).digest()).decode() == INTEGRITY
    return found


@cache
def description(name: str) -> Description:
    """Return a description, "api.github.com" or that of an enterprise server, "ghes-3.17"."""
    with tarfile.open(package()) as archive:
        file = archive.extractfile(f"package/generated/{name}.json")
        assert file is not None
        return Description(json.load(file))


@dataclass(frozen=True)
class Operation:
    """What the description says of a method and path, and the parameters in the path that was asked."""

    template: str
    data: dict[str, Any]
    path: dict[str, str]


@dataclass(frozen=True)
class Description:
    """An OpenAPI 3.0 document."""

    data: dict[str, Any]
    validators: dict[str, Draft202012Validator] = field(default_factory=dict)

    def operation(self, method: str, path: str) -> Operation:
        """Return the operation that is asked for. Raises Wrong when there is none."""
        for template, pattern in self._patterns:
            methods = self.data["paths"][template]
            match = pattern.fullmatch(path) if method.lower() in methods else None
            if match:
                return Operation(template, methods[method.lower()], match.groupdict())
        raise Wrong(f"{method} {path} is no operation of GitHub's")

    @cached_property
    def _patterns(self) -> list[tuple[str, re.Pattern[str]]]:
        """Plain paths before those with parameters, as OpenAPI wants it."""
        return [
            (template, re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/]+)", re.escape(template))))
            for template in sorted(self.data["paths"], key=lambda template: template.count("{"))
            if template.startswith("/repos/{owner}/{repo}/releases")
        ]

    def resolved(self, node: Any) -> Any:
        """Return a part of the document with its references replaced, as JSON Schema: nullable ones as types."""
        if isinstance(node, list):
            return [self.resolved(one) for one in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            found: Any = self.data
            for key in node["$ref"].removeprefix("#/").split("/"):
                found = found[key]
            return self.resolved(found)
        made = {key: self.resolved(value) for key, value in node.items()}
        if made.get("nullable") is True:
            return {"anyOf": [{key: value for key, value in made.items() if key != "nullable"}, {"type": "null"}]}
        return made

    def example(self, name: str) -> dict[str, Any]:
        return copy.deepcopy(self.resolved(self.data["components"]["examples"][name])["value"])

    def require(self, schema: Any, value: Any, what: str) -> None:
        key = json.dumps(schema, sort_keys=True)
        if key not in self.validators:
            self.validators[key] = Draft202012Validator(self.resolved(schema))
        errors = sorted(self.validators[key].iter_errors(value), key=str)
        if errors:
            raise Wrong(f"{what}: {errors[0].json_path} {errors[0].message[:300]}")


@dataclass(frozen=True)
class Call:
    """A request that fits the description."""

    path: dict[str, str]
    asked: Asked
    query: dict[str, str]


class Wrong(Exception):
    """Something is not as GitHub's description says."""


@dataclass
class GitHubServer:
    """The state of one repository's releases, and what was wrong with requests (must stay empty)."""

    description: Description
    token: str = "secret-token"
    url: str = ""
    storage: str = ""
    releases: dict[int, dict[str, Any]] = field(default_factory=dict)
    files: dict[int, bytes] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    says_digests: bool = True
    breaks: list[str] = field(default_factory=list)
    """Names of files whose next upload breaks off, leaving what GitHub calls a starter."""

    def __call__(self, asked: Asked) -> Reply:
        if asked.path.startswith("/storage/"):
            return self._stored(asked)
        try:
            return self._checked(asked)
        except Wrong as error:
            self.wrong.append(str(error))
            return Reply(400, json.dumps({"message": str(error)}).encode())

    def _checked(self, asked: Asked) -> Reply:
        address = urlsplit(asked.path)
        found = self.description.operation(asked.method, unquote(address.path))
        query = dict(parse_qsl(address.query, strict_parsing=bool(address.query)))
        self._require_parameters(found, query)
        self._require_body(found, asked)
        if asked.headers.get("accept") not in {"application/vnd.github+json", "application/octet-stream"}:
            raise Wrong(f"Accept: {asked.headers.get('accept')}")
        if asked.method != "GET" and asked.authorization != f"Bearer {self.token}":
            return Reply(401, b'{"message": "Requires authentication"}')
        status, answer = self._done(found, asked, query)
        if isinstance(answer, Reply):
            return answer
        self._require_answer(found, status, answer)
        return Reply(status, json.dumps(answer).encode() if answer is not None else b"")

    def _require_parameters(self, found: Operation, query: dict[str, str]) -> None:
        known = {one["name"]: one for one in map(self.description.resolved, found.data.get("parameters", []))}
        given = {**found.path, **query}
        for name in given.keys() - known.keys():
            raise Wrong(f"{found.template} has no parameter {name}")
        for name, one in known.items():
            if name not in given:
                if one.get("required"):
                    raise Wrong(f"{found.template} wants {name}")
                continue
            whole = one["schema"].get("type") == "integer" and given[name].isdigit()
            self.description.require(one["schema"], int(given[name]) if whole else given[name], name)

    def _require_body(self, found: Operation, asked: Asked) -> None:
        wanted = found.data.get("requestBody")
        if wanted is None:
            if asked.body:
                raise Wrong(f"{found.template} takes no body")
            return
        kind = asked.headers.get("content-type", "")
        if kind not in wanted["content"]:
            raise Wrong(f"{found.template} takes {list(wanted['content'])}, not {kind!r}")
        if kind == "application/json":
            schema = wanted["content"][kind]["schema"]
            self.description.require(schema, json.loads(asked.body), f"the body of {found.template}")
            for key in json.loads(asked.body).keys() - self.description.resolved(schema)["properties"].keys():
                raise Wrong(f"the body of {found.template} has no {key}")

    def _require_answer(self, found: Operation, status: int, answer: Any) -> None:
        """Look whether this stand-in itself answers as GitHub says it does; `starter` is in its words alone."""
        content = self.description.resolved(found.data["responses"][str(status)]).get("content")
        if content is None:
            return
        text = json.dumps(answer).replace('"state": "starter"', '"state": "open"')
        self.description.require(content["application/json"]["schema"], json.loads(text), "our answer")

    def _done(self, found: Operation, asked: Asked, query: dict[str, str]) -> tuple[int, Any]:
        name = found.data["operationId"].removeprefix("repos/").replace("-", "_")
        return getattr(self, name)(Call(found.path, asked, query))  # type: ignore[no-any-return]

    def get_release_by_tag(self, call: Call) -> tuple[int, Any]:
        for release in self.releases.values():
            if release["tag_name"] == call.path["tag"] and not release["draft"]:
                return 200, release
        return 404, {"message": "Not Found", "documentation_url": "https://docs.github.com/rest"}

    def list_releases(self, call: Call) -> tuple[int, Any]:
        may = call.asked.authorization == f"Bearer {self.token}"
        return 200, _page([one for one in self.releases.values() if may or not one["draft"]], call.query)

    def create_release(self, call: Call) -> tuple[int, Any]:
        number = len(self.releases) + 1
        made = {**self.description.example("release"), **json.loads(call.asked.body), "id": number, "assets": []}
        here = f"{self.url}/repos/{call.path['owner']}/{call.path['repo']}/releases/{number}"
        made |= {"upload_url": f"{here}/assets{{?name,label}}", "assets_url": f"{here}/assets", "published_at": None}
        self.releases[number] = made
        return 201, made

    def update_release(self, call: Call) -> tuple[int, Any]:
        release = self.releases[int(call.path["release_id"])]
        release.update(json.loads(call.asked.body))
        return 200, release

    def list_release_assets(self, call: Call) -> tuple[int, Any]:
        return 200, _page(self.releases[int(call.path["release_id"])]["assets"], call.query)

    def upload_release_asset(self, call: Call) -> tuple[int, Any]:
        assets = self.releases[int(call.path["release_id"])]["assets"]
        name = re.sub(r"[^A-Za-z0-9._+-]", ".", call.query["name"])
        if any(asset["name"] == name for asset in assets):
            errors = [{"resource": "ReleaseAsset", "code": "already_exists", "field": "name"}]
            return 422, Reply(422, json.dumps({"message": "Validation Failed", "errors": errors}).encode())
        number = 1 + max((asset["id"] for one in self.releases.values() for asset in one["assets"]), default=0)
        broken = name in self.breaks
        data = b"" if broken else call.asked.body
        made = {**self.description.example("release-asset"), "id": number, "name": name, "size": len(data), "label": ""}
        made["digest"] = f"sha256:{hashlib.sha256(data).hexdigest()}" if self.says_digests and not broken else None
        made["state"] = "starter" if broken else "uploaded"
        assets.append(made)
        self.files[number] = data
        if broken:
            self.breaks.remove(name)
            return 502, Reply(502, b"")
        return 201, made

    def delete_release_asset(self, call: Call) -> tuple[int, Any]:
        for release in self.releases.values():
            release["assets"] = [one for one in release["assets"] if one["id"] != int(call.path["asset_id"])]
        return 204, None

    def get_release_asset(self, call: Call) -> tuple[int, Any]:
        return 302, Reply(302, headers={"Location": f"{self.storage}/storage/{call.path['asset_id']}?signature=1"})

    def _stored(self, asked: Asked) -> Reply:
        if asked.authorization:
            self.wrong.append("the token was sent to the storage")
        return Reply(200, self.files[int(urlsplit(asked.path).path.rpartition("/")[2])])


def _page(items: list[Any], query: dict[str, str]) -> list[Any]:
    size, page = int(query.get("per_page", "30")), int(query.get("page", "1"))
    return items[(page - 1) * size : page * size]


@contextmanager
def running(name: str) -> Iterator[tuple[GitHubServer, Server]]:
    """Run the stand-in, and beside it another server that its files are stored on."""
    made = GitHubServer(description(name))
    with serving(made) as server, serving(made) as storage:
        made.url, made.storage = server.url, storage.url
        yield made, server
