"""Clients of the service in a process of their own, so that they do not share the service's interpreter."""

from __future__ import annotations

import http.client
import json
import secrets
import sys
import threading
import time
from pathlib import Path


def build_multipart(fields: dict[str, str], image: bytes) -> tuple[bytes, str]:
    """A form as browsers send it, and its content type."""
    mark = secrets.token_hex(16)
    parts = [
        f'--{mark}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    head = f'--{mark}\r\nContent-Disposition: form-data; name="image"; filename="x.png"\r\n\r\n'
    body = b"".join(parts) + head.encode() + image + f"\r\n--{mark}--\r\n".encode()
    return body, f"multipart/form-data; boundary={mark}"


def post_all(host: str, path: str, bodies: list[tuple[bytes, str]], wait: bool, seconds: list[float]) -> None:
    """Post the bodies one after the other on one connection."""
    connection = http.client.HTTPConnection(host, timeout=120)
    for body, kind in bodies:
        headers = {"Content-Type": kind} | ({"Prefer": "wait=60"} if wait else {})
        began = time.perf_counter()
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        response_body = answer.read()
        assert answer.status == (200 if wait else 202), response_body[:300]
        seconds.append(time.perf_counter() - began)


def main() -> None:
    """Read a plan as JSON from stdin, run it, print the seconds of each request and of all."""
    plan = json.load(sys.stdin)
    images = [path.read_bytes() for path in sorted(Path(plan["images"]).glob("*.png"))]
    bodies = [build_multipart(plan["fields"], images[i % len(images)]) for i in range(plan["jobs"])]
    seconds: list[float] = []
    threads = [
        threading.Thread(
            target=post_all,
            args=(plan["host"], plan["path"], bodies[i :: plan["clients"]], plan["wait"], seconds),
        )
        for i in range(plan["clients"])
    ]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps({"all": time.perf_counter() - began, "each": sorted(seconds)}))


if __name__ == "__main__":
    main()
