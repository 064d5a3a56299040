"""The dashboard on the embedded default: what a page weighs, when it can be used, what watching jobs costs.

`python -m benchmarks.dashboard` starts the service in a folder of its own and opens its pages in Chromium.
There is no peer to run beside it: other libraries of the field have no page.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from playwright.sync_api import Browser, Page

from api_tests.support.browser import PageErrors, chromium, open_watched_page
from benchmarks.record import save
from touchstone.settings import Settings
from touchstone.supervisor.up import run_service

PHOTOS = Path("touchstone/photos")
JOBS = 20
SECONDS = 60
ROUNDS = 7
READY = {
    "new": "button:has-text('Run'):enabled",
    "jobs": "tbody tr",
    "models": "article, .card",
    "operations": ".card",
}


@dataclass
class Traffic:
    """What a page asked for and received, by Chromium's own count of bytes on the wire."""

    requests: int = 0
    bytes: float = 0
    images: float = 0
    _kinds: dict[str, str] = field(default_factory=dict)

    def watch(self, page: Page) -> None:
        """Begin to count."""
        line = page.context.new_cdp_session(page)
        line.send("Network.enable")
        line.on("Network.requestWillBeSent", self._on_request)
        line.on("Network.dataReceived", self._on_data)

    def _on_request(self, event: dict[str, Any]) -> None:
        self.requests += 1
        path = event["request"]["url"]
        image = event.get("type") == "Image" or "/samples/" in path or "/artifacts/" in path
        self._kinds[event["requestId"]] = "image" if image else "other"

    def _on_data(self, event: dict[str, Any]) -> None:
        size = event["encodedDataLength"] or event["dataLength"]
        if self._kinds.get(event["requestId"]) == "image":
            self.images += size
        else:
            self.bytes += size


def main() -> None:
    """Measure and keep the record."""
    with (
        tempfile.TemporaryDirectory() as home,
        chromium() as browser,
        run_service(Settings(home=Path(home), port=0), lambda _line: None) as url,
    ):
        warm_up(url)
        loads = {page: measure_page(browser, url, page) for page in READY}
        with run_long_jobs(url):
            watching = measure_watching(browser, url)
    save("dashboard", {"loads": loads, "watching_20_running_jobs_for_a_minute": watching})


def measure_page(browser: Browser, url: str, page: str) -> dict[str, float]:
    """Bytes and requests of a first visit, and the median time until the page can be used."""
    times = [time_page(browser, url, page) for _ in range(ROUNDS)]
    traffic = Traffic()
    with open_watched_page(browser, url, PageErrors()) as tab:
        traffic.watch(tab)
        tab.goto(f"/#/{page}")
        tab.locator(READY[page]).first.wait_for()
        tab.wait_for_timeout(1000)
        files = tab.evaluate(
            "() => performance.getEntriesByType('resource').filter((one) => one.name.includes('/assets/'))"
            ".reduce((sum, one) => sum + one.transferSize, 0)"
        )
    return {
        "seconds_until_usable": round(statistics.median(times), 3),
        "requests": traffic.requests,
        "kilobytes_of_page": round(files / 1000, 1),
        "kilobytes_without_images": round(traffic.bytes / 1000, 1),
        "kilobytes_of_images": round(traffic.images / 1000, 1),
    }


def time_page(browser: Browser, url: str, page: str) -> float:
    """Seconds from the request for a page, with an empty cache, until it can be used."""
    with open_watched_page(browser, url, PageErrors()) as tab:
        began = time.perf_counter()
        tab.goto(f"/#/{page}", wait_until="commit")
        tab.locator(READY[page]).first.wait_for()
        return time.perf_counter() - began


def measure_watching(browser: Browser, url: str) -> dict[str, float]:
    """What the list of jobs asks for while so many run."""
    traffic = Traffic()
    with open_watched_page(browser, url, PageErrors()) as tab:
        tab.goto("/#/jobs")
        tab.locator(READY["jobs"]).first.wait_for()
        tab.wait_for_timeout(2000)
        traffic.watch(tab)
        tab.reload()
        tab.wait_for_timeout(2000)
        before = (traffic.requests, traffic.bytes)
        tab.wait_for_timeout(1000 * SECONDS)
        spent = (traffic.requests - before[0], traffic.bytes - before[1])
    return {"requests": spent[0], "kilobytes": round(spent[1] / 1000, 1)}


def warm_up(url: str) -> None:
    """Have a job in the list, and the models loaded."""
    submit(url, "/v1/attacks/pgd", wait=60, model="imagenet-efficientnet-lite0", eps="2/255", steps="10")


@contextmanager
def run_long_jobs(url: str) -> Iterator[None]:
    """Long jobs that run meanwhile."""
    long = {"model": "fashion-mnist-cnn-linf", "steps": "10000", "eps": "1/255", "early_stop": "false"}
    jobs = [submit(url, "/v1/attacks/pgd", **long, seed=str(seed)) for seed in range(JOBS)]
    yield
    httpx2.post(f"{url}/v1/jobs/cancel", json={"jobs": [job["id"] for job in jobs]}).raise_for_status()


def submit(url: str, path: str, wait: int = 0, **fields: str) -> dict[str, Any]:
    """A job on the cat."""
    headers = {"Prefer": f"wait={wait}"} if wait else {}
    files = {"image": ("chelsea.png", (PHOTOS / "chelsea.png").read_bytes())}
    answer = httpx2.post(url + path, data=fields, files=files, headers=headers, timeout=90)
    answer.raise_for_status()
    job: dict[str, Any] = answer.json()
    return job


if __name__ == "__main__":
    main()
