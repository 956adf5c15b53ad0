"""A hub on 127.0.0.1: serves a folder of files by the addresses that the hub's clients ask for, and can misbehave."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

COMMIT = "1" * 40
EXPORT, EXPORT_COMMIT = "refs/convert/parquet", "2" * 40  # the hub's own parquet copy of a repository: NAME@export


class Hub(ThreadingHTTPServer):
    """Serves `root`/models/ORG/NAME and `root`/datasets/ORG/NAME.

    cut: names of repositories whose weights and rows end after half of what was announced.  slow: repositories, and
    after how many seconds they answer.  asked: every request, as "GET /path".
    """

    daemon_threads = True

    def __init__(self, root: Path, *, cut: tuple[str, ...] = (), slow: Mapping[str, float] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root, self.cut, self.slow = root, cut, slow or {}
        self.asked: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None: ...

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_POST(self) -> None:
        self.posted = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = unquote(urlparse(self.path).path)
        self.server.asked.append(f"{self.command} {self.path}")
        time.sleep(max((seconds for name, seconds in self.server.slow.items() if f"/{name}" in path), default=0))
        try:
            if path.startswith("/api/"):
                self._api(path.removeprefix("/api/").split("/"))
            else:
                self._file(path.strip("/").split("/"), body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    @property
    def _exported(self) -> bool:
        return EXPORT in unquote(self.path) or EXPORT_COMMIT in self.path

    @property
    def _commit(self) -> str:
        return EXPORT_COMMIT if self._exported else COMMIT

    def _repository(self, kind: str, parts: list[str]) -> Path | None:
        folder = self.server.root / kind / ("/".join(parts[:2]) + ("@export" if self._exported else ""))
        if folder.is_dir():
            return folder
        self._send(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        return None

    def _api(self, parts: list[str]) -> None:
        folder = self._repository(parts[0], parts[1:3])
        if folder is None:
            return
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        entries = [{"type": "file", "oid": _oid(path), "size": path.stat().st_size,
                    "path": path.relative_to(folder).as_posix()} for path in files]
        what = parts[3] if len(parts) > 3 else "info"
        if what == "tree":
            recursive = "recursive=true" in self.path.lower()
            self._send(200, _tree(folder / "/".join(parts[5:]), folder, entries, recursive))
        elif what == "paths-info":
            wanted = json.loads(self.posted)["paths"]
            self._send(200, [e for e in entries if e["path"] in wanted])
        elif what in ("info", "revision"):
            self._send(200, {"id": "/".join(parts[1:3]), "sha": self._commit, "private": False, "gated": False,
                             "disabled": False, "tags": [], "downloads": 0, "likes": 0,
                             "siblings": [{"rfilename": e["path"]} for e in entries]})
        else:
            self._send(404, {"error": "no such address"})

    def _file(self, parts: list[str], body: bool) -> None:
        kind = parts.pop(0) if parts[0] in ("datasets", "models") else "models"
        folder = self._repository(kind, parts)
        if folder is None:
            return
        path = folder / "/".join(parts[3:]).removeprefix(EXPORT).partition("/")[2]
        commit = {"X-Repo-Commit": self._commit}
        if not path.is_file():
            self._send(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound", **commit})
            return
        data = path.read_bytes()
        headers = {"ETag": f'"{_oid(path)}"', "Accept-Ranges": "bytes", **commit}
        content = {"models": (".safetensors",), "datasets": (".parquet", ".json")}[kind]
        cut = parts[1] in self.server.cut and path.suffix in content
        self._send(200, data[: len(data) // 2] if cut else data, headers, body, announced=len(data))
        self.close_connection = cut

    def _send(self, status: int, content: object, headers: dict[str, str] | None = None, body: bool = True,
              announced: int | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data) if announced is None else announced))
        self.end_headers()
        if body and self.command != "HEAD":
            self.wfile.write(data)


def _tree(inside: Path, folder: Path, entries: list[dict], recursive: bool) -> list[dict]:
    """What lies in a folder of a repository: files and, one level deep, folders."""
    where = inside.relative_to(folder).as_posix()
    prefix = "" if where == "." else where + "/"
    below = [e for e in entries if e["path"].startswith(prefix)]
    if recursive:
        return below
    folders = {prefix + e["path"][len(prefix):].split("/")[0] for e in below if "/" in e["path"][len(prefix):]}
    return [{"type": "directory", "oid": "0" * 40, "size": 0, "path": name} for name in sorted(folders)] + [
        e for e in below if "/" not in e["path"][len(prefix):]]


def _oid(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


def environment(address: str, home: Path) -> dict[str, str]:
    """Of a process that asks this hub, keeps what it has in `home`, and waits a second for an answer."""
    kept = {name: value for name, value in os.environ.items()
            if not name.lower().endswith("_proxy") and not name.startswith(("HF_", "LOWRANK"))}
    return {**kept, "HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_DOWNLOAD_TIMEOUT": "1",
            "HF_HUB_ETAG_TIMEOUT": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}


@contextmanager
def hub(root: Path, **behaviour: object) -> Iterator[Hub]:
    """A running hub; stopped at the end."""
    server = Hub(root, **behaviour)  # type: ignore[arg-type]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
