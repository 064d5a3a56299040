"""Two hundred clients that send a byte a second beside healthy ones: when they are closed, whom they slow."""

from __future__ import annotations

import http.client
import json
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence

from benchmarks.record import save
from benchmarks.service import temporary_service

SLOW = 200
HEALTHY = 8
SECONDS = 20.0
HEAD = b"POST /v1/attacks/pgd HTTP/1.1\r\nHost: x\r\n"
BODY = HEAD + b"Content-Type: application/json\r\nContent-Length: 100000\r\n\r\n"


def trickle(host: str, start: bytes, lives: list[float]) -> None:
    """Send a byte a second after `start`, until the service hangs up; the seconds until then."""
    name, port = host.split(":")
    began = time.perf_counter()
    with socket.create_connection((name, int(port)), timeout=1.0) as line:
        line.sendall(start)
        while time.perf_counter() - began < 60:
            try:
                line.sendall(b"x")
                if not line.recv(65536):
                    break
            except TimeoutError:
                continue
            except ConnectionError:
                break
    lives.append(time.perf_counter() - began)


def poll_jobs(host: str, end: float, seconds: list[float]) -> None:
    """List the jobs again and again, as a client in good health does."""
    connection = http.client.HTTPConnection(host, timeout=30)
    while time.perf_counter() < end:
        began = time.perf_counter()
        connection.request("GET", "/v1/jobs?limit=10")
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200
        seconds.append(time.perf_counter() - began)
        time.sleep(0.02)


def run_threads(calls: Sequence[Callable[[], object]]) -> None:
    """Run all, each on a thread of its own."""
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def measure_healthy(host: str) -> list[float]:
    """The seconds of each request of the healthy clients, in order."""
    seconds: list[float] = []
    end = time.perf_counter() + SECONDS
    run_threads([lambda: poll_jobs(host, end, seconds)] * HEALTHY)
    return sorted(seconds)


def run_slow_clients(host: str) -> list[float]:
    """The seconds that each slow client lived."""
    lives: list[float] = []
    starts = [HEAD, BODY]
    run_threads([lambda start=starts[i % 2]: trickle(host, start, lives) for i in range(SLOW)])
    return sorted(lives)


def start_slow_clients(host: str) -> subprocess.Popen[str]:
    """The slow clients in a process of their own, so that they cost the healthy ones no interpreter."""
    command = [sys.executable, "-m", "benchmarks.slow_clients", host]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def p99(seconds: Sequence[float]) -> float:
    return statistics.quantiles(seconds, n=100)[-1]


def main() -> None:
    with temporary_service(1) as (host, _, _):
        measure_healthy(host)
        alone = measure_healthy(host)
        slow = start_slow_clients(host)
        beside = measure_healthy(host)
        lives = json.loads(slow.communicate(timeout=90)[0])
    save(
        "service-slow-clients",
        {
            "slow_clients": SLOW,
            "closed_after_seconds": {
                "median": round(statistics.median(lives), 1),
                "last": round(lives[-1], 1),
            },
            "healthy_clients": HEALTHY,
            "p50_ms": {
                "alone": round(1000 * statistics.median(alone), 1),
                "beside": round(1000 * statistics.median(beside), 1),
            },
            "p99_ms": {"alone": round(1000 * p99(alone), 1), "beside": round(1000 * p99(beside), 1)},
            "p99_ratio": round(p99(beside) / p99(alone), 2),
        },
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(run_slow_clients(sys.argv[1])))
    else:
        main()
