"""The writing half of the hub of these tests: model repositories, their branches and files, and large files by hash."""

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

import yaml


@dataclass
class File:
    content: bytes
    large: bool

    @property
    def oid(self) -> str:
        if self.large:
            return hashlib.sha256(self.content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()  # noqa: S324


@dataclass
class Commit:
    oid: str
    branch: str
    summary: str
    paths: list[str]


@dataclass
class Repository:
    private: bool
    branches: dict[str, dict[str, File]] = field(default_factory=lambda: {"main": {}})
    commits: list[Commit] = field(default_factory=list)
    ignored: set[str] = field(default_factory=set)

    def head(self, branch: str) -> str:
        return next((commit.oid for commit in reversed(self.commits) if commit.branch == branch), "0" * 40)


class Dropped(Exception):
    """The connection is to be closed without an answer."""


class HubWrites:
    """`writers` are the tokens that may write, each to its namespace; `members` are other valid ones.

    `faults` are what goes wrong, each once: (part of the method and path, a status, "drop" before the request is
    served, or "lose" its answer). `requests` are those that came in. `before_storing` is called with the size of a
    large file.
    """

    def __init__(self) -> None:
        self.writers: dict[str, str] = {}
        self.members: set[str] = set()
        self.repositories: dict[str, Repository] = {}
        self.faults: list[tuple[str, int | str]] = []
        self.requests: list[str] = []
        self.large_files: dict[str, bytes] = {}
        self.before_storing: Callable[[int], None] = lambda _size: None

    def serve(self, request: BaseHTTPRequestHandler, endpoint: str) -> tuple[int, dict[str, str], bytes] | None:
        """Returns status, headers and body; None if it is no request of this half. Raises Dropped."""
        path = request.path.partition("?")[0].strip("/")
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        named = f"{request.command} {path}"
        if request.command != "GET":
            self.requests.append(named)
        fault = next((each for each in self.faults if each[0] in named), None)
        if fault is not None:
            self.faults.remove(fault)
            if fault[1] == "drop":
                raise Dropped
            if isinstance(fault[1], int):
                return fault[1], {}, b"a page of a proxy"
        token = (request.headers.get("Authorization") or "").removeprefix("Bearer ")
        answer = self._answer(request.command, path, body, token, endpoint)
        if fault is not None:
            raise Dropped
        return answer

    def _answer(
        self, method: str, path: str, body: bytes, token: str, endpoint: str
    ) -> tuple[int, dict[str, str], bytes] | None:
        parts = path.split("/")
        if method == "PUT" and parts[0] == "upload":
            return self._store(parts[1], body)
        if path == "verify" or path == "api/validate-yaml":
            return self._validated(body) if "yaml" in path else _json({})
        if parts[:2] in (["api", "organizations"], ["api", "users"]):
            known = parts[1] == "organizations" and parts[2] in self.writers.values()
            return _json({"name": parts[2], "fullname": parts[2], "avatarUrl": ""}) if known else _refusal(404, "none")
        if path == "api/repos/create":
            return self._create(json.loads(body), token, endpoint)
        named = "/".join(parts[2:4] if parts[:2] == ["api", "models"] else parts[:2]).removesuffix(".git")
        if named not in self.repositories:
            return None if method == "GET" else _refusal(404, "Repository not found", "RepoNotFound")
        repository = self.repositories[named]
        if method == "GET":
            return self._about(named, repository, parts[4:])
        if self.writers.get(token) != named.partition("/")[0]:
            return _refusal(403, "You need write access to this repository.")
        if path.endswith("/info/lfs/objects/batch"):
            return self._batch(json.loads(body), endpoint)
        verb, branch = parts[4], parts[5].replace("%2F", "/")
        if verb == "branch":
            if branch in repository.branches:
                return _refusal(409, "Reference already exists")
            repository.branches[branch] = dict(repository.branches["main"])
            return _json({})
        if branch not in repository.branches:
            return _refusal(404, "Invalid rev id", "RevisionNotFound")
        if verb == "preupload":
            return self._modes(json.loads(body), repository, repository.branches[branch])
        return self._commit(body, named, repository, branch, endpoint)

    def _about(self, named: str, repository: Repository, rest: list[str]) -> tuple[int, dict[str, str], bytes] | None:
        if rest and rest[0] != "revision":
            return None
        branch = rest[1].replace("%2F", "/") if rest else "main"
        return _json({"id": named, "sha": repository.head(branch), "private": repository.private, "siblings": []})

    def _create(self, asked: dict[str, str], token: str, endpoint: str) -> tuple[int, dict[str, str], bytes]:
        if token not in {*self.writers, *self.members}:
            return _refusal(401, "Invalid credentials in Authorization header")
        named = f"{asked['organization']}/{asked['name']}"
        if named in self.repositories:
            return _json({"error": "You already created this model repo", "url": f"{endpoint}/{named}"}, 409)
        if self.writers.get(token) != asked["organization"]:
            return _refusal(403, "You don't have the rights to create a model under this namespace.")
        self.repositories[named] = Repository(private=asked.get("visibility") == "private")
        return _json({"url": f"{endpoint}/{named}"})

    def _validated(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        _, _, rest = json.loads(body)["content"].partition("---\n")
        metadata = yaml.safe_load(rest.partition("\n---")[0])
        errors = [{"message": f"{name} is missing"} for name in ("license",) if name not in metadata]
        if "/" not in (base := metadata.get("base_model", "owner/name")):
            errors.append({"message": f'"base_model" {base!r} is not a valid model id'})
        return _json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def _modes(
        self, asked: dict[str, list[dict[str, str]]], repository: Repository, files: dict[str, File]
    ) -> tuple[int, dict[str, str], bytes]:
        modes = [
            {
                "path": each["path"],
                "uploadMode": "lfs" if each["path"].endswith((".safetensors", ".png")) else "regular",
                "shouldIgnore": each["path"] in repository.ignored,
                "oid": files[each["path"]].oid if each["path"] in files else None,
            }
            for each in asked["files"]
        ]
        return _json({"files": modes})

    def _batch(self, asked: dict[str, list[dict[str, str]]], endpoint: str) -> tuple[int, dict[str, str], bytes]:
        objects = []
        for each in asked["objects"]:
            actions = {
                "upload": {"href": f"{endpoint}/upload/{each['oid']}"},
                "verify": {"href": f"{endpoint}/verify"},
            }
            known = each["oid"] in self.large_files
            objects.append({"oid": each["oid"], "size": each["size"], **({} if known else {"actions": actions})})
        return _json({"transfer": "basic", "objects": objects})

    def _store(self, oid: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        self.before_storing(len(body))
        if hashlib.sha256(body).hexdigest() != oid:
            return _refusal(400, "the content has another hash")
        self.large_files[oid] = body
        return _json({})

    def _commit(
        self, body: bytes, named: str, repository: Repository, branch: str, endpoint: str
    ) -> tuple[int, dict[str, str], bytes]:
        header, *operations = [json.loads(line) for line in body.splitlines()]
        paths = []
        for operation in operations:
            value = operation["value"]
            paths.append(value["path"])
            if operation["key"] == "lfsFile":
                content = self.large_files[value["oid"]]
            else:
                content = base64.b64decode(value["content"])
            repository.branches[branch][value["path"]] = File(content, operation["key"] == "lfsFile")
        oid = hashlib.sha1(body + str(len(repository.commits)).encode()).hexdigest()  # noqa: S324
        repository.commits.append(Commit(oid, branch, header["value"]["summary"], paths))
        return _json({"commitUrl": f"{endpoint}/{named}/commit/{oid}", "commitOid": oid})


def _json(value: object, status: int = 200) -> tuple[int, dict[str, str], bytes]:
    return status, {"Content-Type": "application/json"}, json.dumps(value).encode()


def _refusal(status: int, message: str, code: str = "") -> tuple[int, dict[str, str], bytes]:
    headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
    return status, headers, json.dumps({"error": message}).encode()
