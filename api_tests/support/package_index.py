"""A package index on the loopback that works, hangs, or sends slowly, and wheels to put into it."""

from __future__ import annotations

import hashlib
import io
import re
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
[VERSION] = re.findall(r"^torch==(.+)$", CONSTRAINTS.read_text(), re.MULTILINE)
[FILELOCK] = re.findall(r"^filelock==(.+)$", CONSTRAINTS.read_text(), re.MULTILINE)


def wheel(name: str, version: str, *requires: str, tag: str = "py3-none-any") -> tuple[str, bytes]:
    """The file name and the bytes of a wheel with one module."""
    about = f"{name}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {line}\n" for line in requires)
    files = {
        f"{name}/__init__.py": f"version = {version!r}\n",
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
        f"{about}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n",
        f"{about}/RECORD": "",
    }
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return f"{name}-{version}-{tag}.whl", data.getvalue()


@dataclass
class Index:
    """A package index on the loopback: its files, the paths that hang or send slowly, and the requested
    paths.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    hanging: set[str] = field(default_factory=set)
    slow: set[str] = field(default_factory=set)
    requested: list[str] = field(default_factory=list)
    closed: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def put(self, page: str, *wheels: tuple[str, bytes], digest: str | None = None) -> None:
        """Add a page that links to these wheels, with their digests."""
        lines = []
        for name, data in wheels:
            self.files[f"{page}{name}"] = data
            lines.append(f'<a href="{name}#sha256={digest or hashlib.sha256(data).hexdigest()}">{name}</a>')
        self.files[page] = f"<!DOCTYPE html><html><body>{'<br>'.join(lines)}</body></html>".encode()

    def requests_to(self, part: str) -> list[str]:
        return [path for path in self.requested if path.startswith(f"/{part}/")]

    @property
    def cpu(self) -> str:
        return f"{self.url}/cpu"


class Handler(BaseHTTPRequestHandler):
    index: Index

    def do_GET(self) -> None:
        path = self.path.replace("%2B", "+")
        self.index.requested.append(path)
        if path in self.index.hanging:
            self.index.closed.wait()
        elif path in self.index.slow:
            self.send_slowly()
        else:
            self.send(self.index.files.get(path))

    def send(self, data: bytes | None) -> None:
        self.send_response(404 if data is None else 200)
        self.send_header(
            "Content-Type", "text/html" if self.path.endswith("/") else "application/octet-stream"
        )
        self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()
        self.wfile.write(data or b"")

    def send_slowly(self) -> None:
        """Send a byte now and then, so that no single read times out."""
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        try:
            while not self.index.closed.wait(0.1):
                self.wfile.write(b" ")
        except OSError:
            pass  # the client has given up, as it should

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def run_index() -> Iterator[Index]:
    """An index whose default part has torch for CUDA, and nothing yet under /cpu/."""
    index = Index()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("IndexHandler", (Handler,), {"index": index}))
    index.url = f"http://127.0.0.1:{server.server_port}"
    index.put("/default/torch/", wheel("torch", VERSION, "filelock", "nvidia-cublas"), wheel("torch", "99"))
    index.put("/default/filelock/", wheel("filelock", FILELOCK))
    index.put("/default/nvidia-cublas/", wheel("nvidia_cublas", "13"))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield index
    index.closed.set()
    server.shutdown()
    thread.join()
    server.server_close()
