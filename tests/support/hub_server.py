"""A small Hugging Face Hub on 127.0.0.1: enough of the protocol for `huggingface_hub` to really download.

It serves model repositories with several commits, branches and tags, file listings, and files with ETag, X-Repo-Commit
and Range; weights are redirected to a second origin, as the Hub redirects large files to its storage. Repositories may
be private or gated, and a connection can be broken in the middle of a file. Uploads are in hub_uploads.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import struct
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from hub_uploads import LARGE, Uploads

TOKEN = "hf_goodtoken"


def sha1_of_blob(content: bytes) -> str:
    """The name git gives to a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repo:
    """One model repository: commits (hash -> path -> content), and branches and tags that point to them.

    `messages` has those of uploaded commits.
    """

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Add a commit, move `branch` to it and return its hash."""
        digest = hashlib.sha1(str(len(self.commits)).encode())
        for path, content in sorted(files.items()):
            digest.update(path.encode() + sha1_of_blob(content).encode())
        self.commits[digest.hexdigest()] = dict(files)
        self.refs[branch] = digest.hexdigest()
        return digest.hexdigest()

    def commit_folder(self, folder: Path, branch: str = "main") -> str:
        """Add a commit that holds a folder's files."""
        files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
        return self.commit(files, branch)


@dataclass(frozen=True)
class Request:
    """What was asked, for counting: `path` is the file's path in its repository or the API path."""

    method: str
    kind: str
    path: str
    range: str | None
    authorized: bool


@dataclass
class Break:
    """Break off downloads of a file after `after` bytes, `times` times.

    `reset` sends a TCP reset, which huggingface_hub does not retry; otherwise the connection is closed early.
    """

    after: int
    times: int = 1
    reset: bool = True


class HubServer:
    """The server: `with HubServer() as hub`, then set `HF_ENDPOINT=hub.url`."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.requests: list[Request] = []
        self.breaks: dict[str, Break] = {}
        self.fail_with: int | None = None
        self.owners = {"me"}
        self.refuses_uploads = False
        self.uploaded: dict[str, bytes] = {}
        self._servers = [self._serve("hub"), self._serve("storage")]
        self.url, self.storage_url = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)

    def _serve(self, role: str) -> ThreadingHTTPServer:
        handler = type("Handler", (_Handler,), {"hub": self, "role": role})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return server

    def __enter__(self) -> HubServer:
        return self

    def __exit__(self, *_: Any) -> None:
        self.stop()

    def stop(self) -> None:
        """Go down: later connections are refused."""
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def repo(self, name: str, **options: bool) -> Repo:
        """A repository, made on first use."""
        return self.repos.setdefault(name, Repo(**options))

    def downloads(self, ending: str = "") -> list[Request]:
        """The requests that fetched file contents whose path ends so."""
        return [r for r in self.requests if (r.method, r.kind) == ("GET", "file") and r.path.endswith(ending)]

    def environment(self, home: Path) -> dict[str, str]:
        """The environment of a client process whose Hub this is, with its own home for cache and token."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and not k.lower().endswith("_proxy")}
        return {
            **kept,
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "OMP_NUM_THREADS": "1",
        }


class _Handler(Uploads, BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer
    role: str

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if self.hub.fail_with is not None:
            return self._send(self.hub.fail_with)
        if self.role == "storage":
            return self._storage(path)
        if path.startswith("/api/models/"):
            return self._api(path.removeprefix("/api/models/").split("/"), path)
        parts = path.strip("/").split("/")
        if len(parts) > 4 and parts[2] == "resolve":
            return self._resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        return self._send(404)

    def _log(self, kind: str, path: str) -> None:
        authorized = self.headers.get("Authorization") is not None
        self.hub.requests.append(Request(self.command, kind, path, self.headers.get("Range"), authorized))

    def _open(self, name: str, revision: str) -> tuple[Repo, str] | None:
        """The repository and the commit of a revision; answers itself where there is none."""
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        repo = self.hub.repos.get(name)
        if token and token != TOKEN:
            message = {"X-Error-Message": "Invalid credentials in Authorization header"}
            return self._send(401, headers=message)
        if repo is None or (repo.private and not token):
            return self._send(404 if token else 401, headers={"X-Error-Code": "RepoNotFound"})
        if repo.gated and not token:
            return self._send(403, headers={"X-Error-Code": "GatedRepo"})
        commit = repo.refs.get(revision, revision)
        if commit not in repo.commits:
            return self._send(404, headers={"X-Error-Code": "RevisionNotFound"})
        return repo, commit

    def _api(self, parts: list[str], path: str) -> None:
        self._log("api", path)
        name, call, revision = "/".join(parts[:2]), parts[2] if len(parts) > 2 else "revision", "/".join(parts[3:4])
        found = self._open(name, revision or "main")
        if found is None:
            return None
        repo, commit = found
        files = repo.commits[commit]
        if call == "revision":
            siblings = [{"rfilename": p} for p in files]
            facts = {"_id": commit[:24], "id": name, "modelId": name, "sha": commit, "siblings": siblings}
            return self._send_json({**facts, "private": repo.private, "gated": repo.gated, "tags": [], "downloads": 0})
        if call == "tree":
            return self._send_json([_entry(p, content) for p, content in files.items()])
        return self._send(404)

    def _resolve(self, name: str, revision: str, path: str) -> None:
        self._log("file" if not path.endswith(LARGE) else "redirect", path)
        found = self._open(name, revision)
        if found is None:
            return None
        repo, commit = found
        headers = {"X-Repo-Commit": commit}
        content = repo.commits[commit].get(path)
        if content is None:
            return self._send(404, headers={**headers, "X-Error-Code": "EntryNotFound"})
        if path.endswith(LARGE):
            digest = hashlib.sha256(content).hexdigest()
            linked = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
            location = f"{self.hub.storage_url}/{name}/{commit}/{path}"
            return self._send(302, headers={**headers, **linked, "Location": location})
        return self._send_file(content, path, {**headers, "ETag": f'"{sha1_of_blob(content)}"'})

    def _storage(self, path: str) -> None:
        owner, name, commit, *rest = path.strip("/").split("/")
        file = "/".join(rest)
        self._log("file", file)
        content = self.hub.repos[f"{owner}/{name}"].commits[commit][file]
        self._send_file(content, file, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"'})

    def _send_file(self, content: bytes, path: str, headers: dict[str, str]) -> None:
        status, body = 200, content
        asked = self.headers.get("Range")
        if asked is not None:
            first = int(asked.removeprefix("bytes=").split("-")[0])
            status, body = 206, content[first:]
            headers = {**headers, "Content-Range": f"bytes {first}-{len(content) - 1}/{len(content)}"}
        broken = self.hub.breaks.get(path)
        if broken is not None and broken.times and self.command == "GET":
            broken.times -= 1
            self._start(status, {**headers, "Content-Length": str(len(body))})
            self.wfile.write(body[: broken.after])
            self.wfile.flush()
            if broken.reset:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            else:
                self.connection.shutdown(socket.SHUT_WR)
            self.close_connection = True
            self.connection.close()
            return
        self._send(status, body, {**headers, "Accept-Ranges": "bytes"})

    def token_of(self) -> str | None:
        """The valid token that was sent, if any."""
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        return token if token == TOKEN else None

    def _send_json(self, data: Any, status: int = 200) -> None:
        self._send(status, json.dumps(data).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self._start(status, {**(headers or {}), "Content-Length": str(len(body))})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _start(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()


def _entry(path: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": sha1_of_blob(content)}
    if path.endswith(LARGE):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return entry
