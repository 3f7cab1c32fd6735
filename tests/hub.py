"""A stand-in for the Hugging Face Hub: repositories, uploads, commits, a token, the check of a card's header."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import yaml

TOKEN = "hf_" + "t" * 34
_LARGE = 1_000_000
_LICENCES = ("mit", "apache-2.0", "bsd-3-clause", "cc-by-4.0", "gpl-3.0", "other")  # some of the hub's


class Hub:
    """A hub on loopback; its address is ``url``.

    Attributes:
        repositories: Files of each repository by path.
        private: Whether each repository is private.
        refusals: Number of requests without the token.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.refusals = 0
        self.objects: dict[str, bytes] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        repository = self.path.removeprefix("/api/models/").split("/revision")[0].split("/tree")[0]
        files = self.hub.repositories.get(repository)
        if files is None:
            self._answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        elif "/tree/" in self.path:
            self._answer(
                200,
                [{"type": "file", "path": name, "size": len(data), "oid": "0" * 40} for name, data in files.items()],
            )
        else:
            self._answer(200, {"id": repository, "sha": "0" * 40, "siblings": [{"rfilename": name} for name in files]})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = self._chunks()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.hub.refusals += 1
            self._answer(401, {"error": "Invalid user token"})
            return
        if self.path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted['organization']}/{wanted['name']}" if "organization" in wanted else wanted["name"]
            present = name in self.hub.repositories
            self.hub.repositories.setdefault(name, {})
            self.hub.private.setdefault(name, wanted.get("private") is True or wanted.get("visibility") == "private")
            self._answer(409 if present else 200, {"url": f"{self.hub.url}/{name}"})
        elif self.path == "/api/validate-yaml":
            errors = [{"message": fault} for fault in faults_of_card(json.loads(body)["content"])]
            self._answer(400 if errors else 200, {"errors": errors, "warnings": []})
        elif "/preupload/" in self.path:
            files = [
                {
                    "path": each["path"],
                    "uploadMode": "lfs" if each["size"] > _LARGE else "regular",
                    "shouldIgnore": False,
                }
                for each in json.loads(body)["files"]
            ]
            self._answer(200, {"files": files})
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**each, "actions": {"upload": {"href": f"{self.hub.url}/objects/{each['oid']}", "header": {}}}}
                for each in json.loads(body)["objects"]
            ]
            self._answer(200, {"transfer": "basic", "objects": objects}, kind="application/vnd.git-lfs+json")
        elif "/commit/" in self.path:
            repository = self.path.removeprefix("/api/models/").split("/commit/")[0]
            self._commit(self.hub.repositories[repository], [json.loads(line) for line in body.splitlines()])
            self._answer(
                200,
                {"success": True, "commitOid": "1" * 40, "commitUrl": f"{self.hub.url}/{repository}/commit/{'1' * 40}"},
            )
        else:
            self._answer(200, {})

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        oid = self.path.removeprefix("/objects/")
        assert hashlib.sha256(data).hexdigest() == oid
        self.hub.objects[oid] = data
        self._answer(200, {})

    def _commit(self, files: dict[str, bytes], lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(
        self, status: int, content: Any, headers: dict[str, str] | None = None, kind: str = "application/json"
    ) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


def faults_of_card(text: str) -> list[str]:
    """Header fields that the hub refuses in a card: licences by other names, results of another form."""
    found = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    if found is None:
        return ["the card has no header"]
    try:
        header = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        return [f"the header is no YAML: {error}"]
    faults = []
    if header.get("license") not in _LICENCES:
        faults.append(f'"license" must be one of [{", ".join(_LICENCES)}]')
    elif header["license"] == "other" and not re.fullmatch(r"[a-z0-9.-]+", str(header.get("license_name"))):
        faults.append('"license_name" must be a string of [a-z0-9-.]')
    if not all(isinstance(tag, str) for tag in header.get("tags", [])):
        faults.append('"tags" must be strings')
    for index, model in enumerate(header.get("model-index", [])):
        where = f'"model-index[{index}]'
        if not isinstance(model.get("name"), str):
            faults.append(f'{where}.name" must be a string')
        for result in model.get("results", []):
            parts = {"task": ("type",), "dataset": ("name", "type")}
            needed = [(part, key, result.get(part, {}).get(key)) for part, keys in parts.items() for key in keys]
            needed += [("metrics", "type", metric.get("type")) for metric in result.get("metrics", [{}])]
            faults += [f'{where}.results.{part}.{key}" must be a string' for part, key, value in needed
                       if not isinstance(value, str)]  # fmt: skip
            if any("value" not in metric for metric in result.get("metrics", [{}])):
                faults.append(f'{where}.results.metrics.value" is required')
    return faults
