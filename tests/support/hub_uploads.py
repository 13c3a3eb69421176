"""The requests with which `huggingface_hub` creates a repository and a branch, and uploads files in one commit.

Files that are not text go to the storage by the LFS protocol, as the Hub demands, before the commit refers to them. A
token may write to repositories of the server's owners, and propose pull requests to all others.
"""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".safetensors", ".bin")


def is_text(content: bytes) -> bool:
    """True if the content is UTF-8 text, perhaps cut off in a character."""
    try:
        content[:-4].decode()
    except UnicodeDecodeError:
        return False
    return b"\0" not in content


class Uploads:
    """POST and PUT of the handler of `HubServer`, which has the attributes and methods that are used here."""

    hub: Any
    path: str
    headers: Any
    rfile: Any
    _send: Any
    _send_json: Any
    _log: Any
    token_of: Any

    def do_POST(self) -> None:  # noqa: N802
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self._log("api", path)
        if self.hub.fail_with is not None:
            return self._send(self.hub.fail_with)
        if path == "/api/validate-yaml":
            return self._send_json({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._lfs(json.loads(body))
        if path.startswith("/api/models/"):
            owner, name, call, *rest = path.removeprefix("/api/models/").split("/")
            return self._change(f"{owner}/{name}", call, "/".join(rest), body)
        return self._send(404)

    def do_PUT(self) -> None:  # noqa: N802
        """An upload to the storage: /lfs/OID."""
        content = self.rfile.read(int(self.headers["Content-Length"]))
        oid = self.path.removeprefix("/lfs/")
        self._log("upload", oid)
        if self.hub.refuses_uploads or hashlib.sha256(content).hexdigest() != oid:
            return self._send(400)
        self.hub.uploaded[oid] = content
        return self._send(200)

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        url = {"url": f"{self.hub.url}/{name}"}
        if self.token_of() is None:
            return self._send(401)
        if name in self.hub.repos:
            return self._send_json(url, 409)
        if asked["organization"] not in self.hub.owners:
            return self._send(403)
        private = asked.get("visibility") == "private" or asked.get("private") is True
        self.hub.repo(name, private=private).commit({".gitattributes": b""})
        return self._send_json(url)

    def _change(self, name: str, call: str, revision: str, body: bytes) -> None:
        query = parse_qs(urlsplit(self.path).query)
        proposed, repo = "create_pr" in query, self.hub.repos.get(name)
        if self.token_of() is None:
            return self._send(401)
        if repo is None:
            return self._send(404, headers={"X-Error-Code": "RepoNotFound"})
        if name.split("/")[0] not in self.hub.owners and not proposed:
            return self._send(403)
        if call == "branch":
            if revision in repo.refs:
                return self._send(409)
            repo.refs[revision] = repo.refs["main"]
            return self._send_json({})
        if revision not in repo.refs:
            return self._send(404, headers={"X-Error-Code": "RevisionNotFound"})
        if call == "preupload":
            return self._send_json({"files": [self._mode(file) for file in json.loads(body)["files"]]})
        return self._commit(name, repo, revision, [json.loads(line) for line in body.splitlines()], proposed)

    def _mode(self, file: dict[str, Any]) -> dict[str, Any]:
        large = file["path"].endswith(LARGE) or not is_text(base64.b64decode(file["sample"]))
        return {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}

    def _lfs(self, asked: dict[str, Any]) -> None:
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.hub.storage_url}/lfs/{each['oid']}"}}}
            for each in asked["objects"]
        ]
        self._send_json({"transfer": "basic", "objects": objects})

    def _commit(self, name: str, repo: Any, revision: str, lines: list[dict[str, Any]], proposed: bool) -> None:
        files = dict(repo.commits[repo.refs[revision]])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.uploaded[value["oid"]]
        number = 1 + sum(ref.startswith("refs/pr/") for ref in repo.refs)
        made = repo.commit(files, f"refs/pr/{number}" if proposed else revision)
        repo.messages[made] = next(line["value"]["summary"] for line in lines if line["key"] == "header")
        facts = {"commitOid": made, "commitUrl": f"{self.hub.url}/{name}/commit/{made}"}
        if proposed:
            facts["pullRequestUrl"] = f"{self.hub.url}/{name}/discussions/{number}"
        self._send_json(facts)
