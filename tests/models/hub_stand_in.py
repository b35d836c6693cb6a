"""A hub on loopback: a real HTTP server that counts what it sends and misbehaves when told to.

Weights are redirected to a content network (the same server under another name), as really.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "org/tiny"


@dataclass
class Faults:
    """What is wrong with this hub; the defaults are a sound one."""

    token: str | None = None
    """Without it nothing is told."""
    gated: bool = False
    """Nobody has agreed to the terms."""
    ranges: bool = True
    breaks: list[int] = field(default_factory=list)
    """After so many bytes of an answer the connection ends; one entry for each next answer."""
    expired: int = 0
    """So many requests to the content network find their address expired."""
    busy: int = 0
    """So many requests for weights are told to come later."""
    size_added: int = 0
    """To what the hub says the size is."""
    etags: list[str] = field(default_factory=list)
    """Of the next answers of the content network."""
    linked_etags: list[str] = field(default_factory=list)
    """Of the next answers of the hub."""
    shifted: int = 0
    """Other bytes than were asked for."""
    compressed: bool = False
    redirect: str | None = None
    """Where the content network sends everybody."""
    commit: str = COMMIT
    """In the answers' headers."""


@dataclass
class StandIn:
    """What the tests look at."""

    files: Path
    endpoint: str
    faults: Faults = field(default_factory=Faults)
    weight_bytes: int = 0
    """Of weight files, sent."""
    weight_requests: list[tuple[str, str]] = field(default_factory=list)
    """File and range."""
    tokens: dict[str, set[str | None]] = field(default_factory=dict)
    """By host: the authorization that came with requests."""

    def whole(self) -> int:
        return sum(path.stat().st_size for path in self.files.glob("*.safetensors"))


@contextmanager
def running_hub(files: Path) -> Iterator[StandIn]:
    """Serves the folder `files` as the repository `REPOSITORY`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    port = server.server_address[1]
    hub = StandIn(files, f"http://127.0.0.1:{port}")
    server.hub = hub  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), name="hub stand-in")
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(head=True)

    def do_GET(self) -> None:
        self._answer(head=False)

    def _answer(self, head: bool) -> None:
        hub: StandIn = self.server.hub  # type: ignore[attr-defined]
        faults = hub.faults
        host = self.headers.get("Host", "").partition(":")[0]
        token = self.headers.get("Authorization")
        hub.tokens.setdefault(host, set()).add(token)
        path = unquote(urlsplit(self.path).path)
        if path.startswith("/cdn/"):
            self._send_weights(hub, path.removeprefix("/cdn/"), head)
            return
        if faults.token is not None and token != f"Bearer {faults.token}":
            self._send(401, b"{}", {"X-Error-Code": "RepoNotFound"}, head)
        elif faults.gated:
            self._send(403, b"{}", {"X-Error-Code": "GatedRepo"}, head)
        elif re.fullmatch(f"/api/models/{REPOSITORY}(/revision/[^/]+)?", path):
            if path.rpartition("/")[2] == "absent":
                self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, head)
            else:
                self._send_json({"id": REPOSITORY, "sha": COMMIT, "siblings": []}, head)
        elif path.startswith(f"/api/models/{REPOSITORY}/tree/"):
            self._send_json([_entry(file) for file in sorted(hub.files.iterdir())], head)
        elif found := re.fullmatch(f"/{REPOSITORY}/resolve/([^/]+)/([^/]+)", path):
            self._send_file(hub, found[2], head)
        else:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, head)

    def _send_json(self, value: object, head: bool) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"}, head)

    def _send_file(self, hub: StandIn, name: str, head: bool) -> None:
        file = hub.files / name
        common = {"X-Repo-Commit": hub.faults.commit}
        if not file.is_file():
            self._send(404, b"", {**common, "X-Error-Code": "EntryNotFound"}, head)
        elif name.endswith(".safetensors"):
            etag = hub.faults.linked_etags.pop(0) if hub.faults.linked_etags else _digest(file)
            size = file.stat().st_size + hub.faults.size_added
            port = self.server.server_address[1]  # type: ignore[misc]
            headers = {
                **common,
                "X-Linked-Etag": f'"{etag}"',
                "X-Linked-Size": str(size),
                "Location": f"http://localhost:{port}/cdn/{name}?signature=1",
            }
            self._send(302, b"", headers, head)
        else:
            self._send(200, file.read_bytes(), {**common, "ETag": f'"{_digest(file)}"'}, head)

    def _send_weights(self, hub: StandIn, name: str, head: bool) -> None:
        faults, file = hub.faults, hub.files / name
        size = file.stat().st_size
        hub.weight_requests.append((name, self.headers.get("Range", "")))
        if faults.redirect is not None:
            self._send(302, b"", {"Location": faults.redirect}, head)
            return
        if faults.busy:
            faults.busy -= 1
            self._send(503, b"", {"Retry-After": "0"}, head)
            return
        if faults.expired:
            faults.expired -= 1
            self._send(403, b"", {}, head)
            return
        headers = {"ETag": faults.etags.pop(0) if faults.etags else '"cdn"'}
        if faults.compressed:
            headers["Content-Encoding"] = "gzip"
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        status, start, end = 200, 0, size
        if found is not None and faults.ranges:
            start, end = int(found[1]) + faults.shifted, int(found[2]) + 1 + faults.shifted
            if start >= size:
                self._send(416, b"", {}, head)
                return
            status, end = 206, min(end, size)
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        with file.open("rb") as data:
            data.seek(start)
            self._send(status, data.read(end - start), headers, head, counted=hub)

    def _send(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str],
        head: bool,
        counted: StandIn | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if head:
            return
        if counted is not None:
            if counted.faults.breaks:
                body = body[: counted.faults.breaks.pop(0)]
                self.close_connection = True
            counted.weight_bytes += len(body)
        self.wfile.write(body)


def _entry(file: Path) -> dict[str, object]:
    entry = {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": _digest(file)}
    if file.suffix == ".safetensors":
        lfs = {"oid": _digest(file), "size": entry["size"], "pointerSize": 130}
        return {**entry, "lfs": lfs}
    return entry


def _digest(file: Path) -> str:
    return _digest_at(file, file.stat().st_mtime_ns)


@cache
def _digest_at(file: Path, _time_ns: int) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def turn_to(hub: StandIn, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs of this process fetch from `hub` into `cache`, as if it were the real one."""
    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
