"""A fake remote model: a linear one on the loopback that counts its queries and can misbehave."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from api_tests.support.linear_models import linear_model
from api_tests.support.wait import TIMEOUT_SECONDS
from api_tests.support.webhook_receiver import LoopbackServer, serve_in_thread
from touchstone.models.manifest import InputSpec, Manifest, Weights
from touchstone.models.remote_manifest import Remote

SHAPE = (3, 8, 8)
CLASSES = ("ant", "bee", "cow", "dog")
BATCH_TEMPLATE = {"request": {"instances": "$tensor"}, "answer": "predictions[*]"}

Floats = NDArray[np.float64]
Action = Callable[["RemoteModelHandler"], None]


@dataclass
class FakeRemoteModel:
    """The model, and the requests that it received."""

    port: int = 0
    rows: int = 0
    requests: int = 0
    headers: list[dict[str, str]] = field(default_factory=list)
    bodies: list[Any] = field(default_factory=list)
    connections: set[Any] = field(default_factory=set)
    action: Action | None = None
    """What to do instead of answering; `next_actions` apply to the next requests only."""
    next_actions: list[Action] = field(default_factory=list)
    encode_logits: Callable[[Floats], Any] = lambda z: z.tolist()
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        layer = linear_model(classes=len(CLASSES), shape=SHAPE)[1]
        self.weight, self.bias = layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def logits(self, x: Floats) -> Floats:
        return np.asarray(x.reshape(len(x), -1) @ self.weight.T + self.bias)

    def probabilities(self, z: Floats) -> Floats:
        shares = np.exp(z - z.max(1, keepdims=True))
        return np.asarray(shares / shares.sum(1, keepdims=True))

    def manifest(self, **remote: Any) -> Manifest:
        """A manifest of this model; its digest depends on the fields of its remote part."""
        layout = remote.pop("layout", "nchw")
        fields = {
            "url": self.url,
            "protocol": "json",
            "answers": "logits",
            **BATCH_TEMPLATE,
            "batch": 8,
            **remote,
        }
        if fields["protocol"] == "oip":
            fields = {name: value for name, value in fields.items() if name not in BATCH_TEMPLATE}
        digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
        return Manifest(
            kind="remote",
            id="far-away",
            digest=f"sha256:{digest}",
            architecture="remote",
            weights=Weights(file="remote"),
            input=InputSpec(height=8, width=8, interpolation="bilinear", layout=layout),
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            classes=CLASSES,
            remote=Remote(**fields),
            parameters=0,
            licence="none",
            provenance="made for tests",
            accuracy=(),
        )


class RemoteModelHandler(BaseHTTPRequestHandler):
    """Answers template requests at any path, and the Open Inference Protocol at its own."""

    protocol_version = "HTTP/1.1"
    timeout = TIMEOUT_SECONDS

    @property
    def model(self) -> FakeRemoteModel:
        model: FakeRemoteModel = self.server.model  # type: ignore[attr-defined]
        return model

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        x, wrap = parse_request(self.path, dict(self.headers), body)
        with self.model.lock:
            self.model.rows += len(x)
            self.model.requests += 1
            self.model.headers.append(dict(self.headers))
            self.model.bodies.append(body)
            self.model.connections.add(self.client_address)
            act = self.model.next_actions.pop(0) if self.model.next_actions else self.model.action
        if act is not None:
            act(self)
        else:
            self.reply(200, wrap(self.model.encode_logits(self.model.logits(x))))

    def reply(self, status: int, value: Any, **headers: str) -> None:
        self.send(status, value if isinstance(value, bytes) else json.dumps(value).encode(), **headers)

    def send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def parse_request(path: str, headers: dict[str, str], body: bytes) -> tuple[Floats, Callable[[Any], Any]]:
    """The images of a request (B, ...), and how their answers are wrapped."""
    length = int(headers.get("Inference-Header-Content-Length", len(body)))
    request = json.loads(body[:length])
    if path.startswith("/v2/models/"):
        [tensor] = request["inputs"]
        data = np.frombuffer(body[length:], "<f4") if length < len(body) else np.array(tensor["data"])
        name = request["outputs"][0]["name"]
        x = data.astype(np.float64).reshape(tensor["shape"])
        x = x.transpose(0, 3, 1, 2) if x.shape[-1] == 3 else x
        return x, lambda z: {"outputs": [{"name": name, "datatype": "FP32", "data": np.ravel(z).tolist()}]}
    if "instances" in request:
        x = np.stack(
            [
                np.array(one, dtype=np.float64) if isinstance(one, list) else decode_png(one["b64"])
                for one in request["instances"]
            ]
        )
        return x.transpose(0, 3, 1, 2) if x.shape[-1] == 3 else x, lambda z: {"predictions": z}
    return decode_png(request["image"].removeprefix("data:image/png;base64,"))[None], lambda z: {
        "scores": z[0]
    }


def decode_png(text: str) -> Floats:
    """The input that the model's own preprocessing makes of a file."""
    with Image.open(io.BytesIO(base64.b64decode(text))) as image:
        pixels = np.asarray(image.convert("RGB").resize((8, 8)))
    return pixels.transpose(2, 0, 1).astype(np.float64) / 255


@contextmanager
def serve_model(tls: ssl.SSLContext | None = None) -> Iterator[FakeRemoteModel]:
    server = LoopbackServer(("127.0.0.1", 0), RemoteModelHandler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    model = FakeRemoteModel(port=server.server_address[1])
    server.model = model  # type: ignore[attr-defined]
    with serve_in_thread(server):
        yield model


def hang(handler: RemoteModelHandler) -> None:
    """Wait until the client closes the connection."""
    handler.connection.settimeout(TIMEOUT_SECONDS)
    assert handler.connection.recv(1) == b""
    handler.close_connection = True


def send_slowly(handler: RemoteModelHandler) -> None:
    """Send a byte now and then until the client closes the connection."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for _ in range(400):
        handler.wfile.write(b" ")
        time.sleep(0.05)


def reply_with(status: int, value: Any = b"", **headers: str) -> Action:
    """Reply with this."""
    return lambda handler: handler.reply(status, value, **headers)


def close_silently(handler: RemoteModelHandler) -> None:
    """Close the connection without a response."""
    handler.close_connection = True
