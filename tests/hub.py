"""A hub on this machine: an HTTP server that receives what `huggingface_hub` sends, and gives it out again."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_of_jane"
READER = "hf_that_may_not_write"
OWNER = "jane"


@dataclass
class Hub:
    """What the hub holds: for each repository and branch the files, and what was said in commits."""

    repos: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    private: dict[str, Any] = field(default_factory=dict)
    commits: list[dict[str, Any]] = field(default_factory=list)
    large: dict[str, bytes] = field(default_factory=dict)  # files outside of git, by their SHA-256
    address: str = ""
    broken: bool = False  # answers 500 to commits

    def files(self, repo: str, branch: str = "main") -> dict[str, bytes]:
        return self.repos[repo][branch]


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def do_GET(self) -> None:
        self._answer("GET")

    def do_HEAD(self) -> None:
        self._answer("HEAD")

    def _answer(self, method: str) -> None:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b"".join(self._chunks())
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path)
        for verb, pattern, action in ROUTES:
            found = re.fullmatch(pattern, path)
            if verb == method and found:
                token = self.headers.get("Authorization", "").removeprefix("Bearer ")
                if verb == "POST" and token not in (TOKEN, READER):
                    return self._send(401, {"error": "Invalid credentials in Authorization header"})
                if verb == "POST" and token == READER:
                    return self._send(403, {"error": "You don't have the rights to create a model"})
                return self._send(*action(self.hub, body, *found.groups()))
        return self._send(404, {"error": f"nothing at {method} {path}"})

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _send(self, status: int, answer: Any, headers: dict[str, str] | None = None) -> None:
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def create(hub: Hub, body: bytes) -> tuple[int, Any]:
    asked = json.loads(body)
    name = f"{asked.get('organization') or OWNER}/{asked['name']}"
    if name in hub.repos:
        return 409, {"error": "You already created this model repo", "url": f"{hub.address}/{name}"}
    hub.repos[name] = {"main": {}}
    hub.private[name] = asked.get("visibility")
    return 200, {"url": f"{hub.address}/{name}"}


def branch(hub: Hub, body: bytes, repo: str, name: str) -> tuple[int, Any]:
    if name in hub.repos[repo]:
        return 409, {"error": "Reference already exists"}
    hub.repos[repo][name] = dict(hub.files(repo))
    return 200, {}


def validate(hub: Hub, body: bytes) -> tuple[int, Any]:
    """Refuse metadata as the hub does, of which this is the part that cards of ours touch."""
    content = json.loads(body)["content"]
    found = yaml.safe_load(content.split("---")[1]) if content.startswith("---\n") else {}
    errors = []
    if found.get("license") == "other" and "license_name" not in found:
        errors.append({"message": '"license_name" is required'})
    for model in found.get("model-index", []):
        for result in model["results"]:
            if not {"name", "type"} <= set(result["dataset"]) or "type" not in result["task"]:
                errors.append({"message": '"model-index" is not valid'})
            if any(not isinstance(one["value"], float) for one in result["metrics"]):
                errors.append({"message": '"model-index" holds no number'})
    return (400 if errors else 200), {"errors": errors, "warnings": []}


def preupload(hub: Hub, body: bytes, repo: str, revision: str) -> tuple[int, Any]:
    if revision not in hub.repos[repo]:
        return 404, {"error": "Revision not found"}
    files = json.loads(body)["files"]
    modes = {one["path"]: "lfs" if one["path"].endswith(".safetensors") else "regular" for one in files}
    told = [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()]
    return 200, {"files": told}


def batch(hub: Hub, body: bytes, repo: str) -> tuple[int, Any]:
    objects = []
    for one in json.loads(body)["objects"]:
        upload = {"href": f"{hub.address}/large/{one['oid']}"}
        objects.append({**one, **({} if one["oid"] in hub.large else {"actions": {"upload": upload}})})
    return 200, {"transfer": "basic", "objects": objects}


def put(hub: Hub, body: bytes, oid: str) -> tuple[int, Any]:
    assert hashlib.sha256(body).hexdigest() == oid
    hub.large[oid] = body
    return 200, {}


def commit(hub: Hub, body: bytes, repo: str, revision: str) -> tuple[int, Any]:
    if hub.broken:
        return 500, {"error": "Internal error"}
    lines = [json.loads(line) for line in body.splitlines()]
    files = hub.files(repo, revision)
    for line in lines:
        value = line["value"]
        if line["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif line["key"] == "lfsFile":
            files[value["path"]] = hub.large[value["oid"]]
            assert len(files[value["path"]]) == value["size"]
    header = next(line["value"] for line in lines if line["key"] == "header")
    oid = hashlib.sha1(body).hexdigest()
    hub.commits.append({"repo": repo, "revision": revision, "message": header["summary"], "oid": oid})
    return 200, {"commitUrl": f"{hub.address}/{repo}/commit/{oid}", "commitOid": oid, "success": True}


ROUTES: list[tuple[str, str, Any]] = [
    ("POST", r"/api/repos/create", create),
    ("POST", r"/api/models/([\w.-]+/[\w.-]+)/branch/(.+)", branch),
    ("POST", r"/api/validate-yaml", validate),
    ("POST", r"/api/models/([\w.-]+/[\w.-]+)/preupload/(.+)", preupload),
    ("POST", r"/([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch", batch),
    ("PUT", r"/large/(\w+)", put),
    ("POST", r"/api/models/([\w.-]+/[\w.-]+)/commit/(.+)", commit),
]


@contextlib.contextmanager
def running() -> Iterator[Hub]:
    """Run a hub for the time of a ``with`` block."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
