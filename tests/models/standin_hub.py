"""A stand-in for huggingface.co on this machine: the few answers that fetching a model asks for, and its troubles."""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0f3c" * 10
LARGE = (".safetensors", ".pt")
API = re.compile(r"/api/models/([^/]+/[^/]+)(?:/revision/[^/]+)?")
FILE = re.compile(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)")


def git_id(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class StandIn:
    """Repositories as folders below a root.

    Args:
        root: repository -> folder, as `root / "ACE-Step" / "acestep-v15-base"`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.ranges: list[tuple[str, str]] = []  # what was asked for in part
        self.served: list[str] = []
        self.break_once: set[str] = set()  # files that are cut off in the middle the first time
        self.other_bytes: set[str] = set()  # files that come with other bytes than the listing states
        standin = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                """Be quiet."""

            def do_HEAD(self):
                standin.answer(self, with_body=False)

            def do_GET(self):
                standin.answer(self, with_body=True)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, request, *, with_body):
        path = unquote(urlsplit(request.path).path)
        if found := API.fullmatch(path):
            self._listing(request, found[1])
        elif found := FILE.fullmatch(path):
            self._file(request, found[1], found[2], with_body=with_body)
        else:
            request.send_error(404)

    def _missing(self, request, code):
        request.send_response(404)
        request.send_header("X-Error-Code", code)
        request.send_header("X-Error-Message", "no")
        request.send_header("Content-Length", "0")
        request.end_headers()

    def _listing(self, request, repository):
        folder = self.root / repository
        if not folder.is_dir():
            self._missing(request, "RepoNotFound")
            return
        siblings = []
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                content = path.read_bytes()
                entry = {"rfilename": path.relative_to(folder).as_posix(), "size": len(content)}
                entry["blobId"] = git_id(content)
                if path.suffix in LARGE:
                    digest = hashlib.sha256(content).hexdigest()
                    entry["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 130}
                siblings.append(entry)
        body = json.dumps({"id": repository, "modelId": repository, "sha": COMMIT, "siblings": siblings}).encode()
        request.send_response(200)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    def _file(self, request, repository, name, *, with_body):
        path = self.root / repository / name
        if not path.is_file():
            self._missing(request, "EntryNotFound")
            return
        content = path.read_bytes()
        etag = hashlib.sha256(content).hexdigest() if path.suffix in LARGE else git_id(content)
        if name in self.other_bytes:
            content = content[:-1] + bytes([content[-1] ^ 1])
        start, asked = 0, request.headers.get("Range")
        if asked and with_body:
            self.ranges.append((name, asked))
            start = int(asked.removeprefix("bytes=").split("-")[0])
        body = content[start:]
        request.send_response(206 if start else 200)
        request.send_header("X-Repo-Commit", COMMIT)
        request.send_header("ETag", f'"{etag}"')
        request.send_header("Accept-Ranges", "bytes")
        request.send_header("Content-Length", str(len(body)))
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        request.end_headers()
        if not with_body:
            return
        self.served.append(name)
        if name in self.break_once:
            request.wfile.write(body[: len(body) // 2])
            request.wfile.flush()
            request.close_connection = True
            request.connection.close()
            return
        request.wfile.write(body)
