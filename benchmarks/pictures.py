"""The pictures in README and docs: `python -m benchmarks.pictures` takes them of real jobs."""

from __future__ import annotations

import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
from playwright.sync_api import Browser, Page
from rich.console import Console

from api_tests.support.browser import PHONE, PageErrors, chromium, open_watched_page, take_picture
from benchmarks.dashboard import submit
from touchstone.cli import demo
from touchstone.settings import Settings
from touchstone.supervisor.up import run_service

LITE0, NOISE, PLAIN, LINF = (
    "imagenet-efficientnet-lite0",
    "fashion-mnist-cnn-noise-0.25",
    "fashion-mnist-cnn",
    "fashion-mnist-cnn-linf",
)
PICTURES = Path(__file__).parents[1] / "docs/pictures"
CLOTHES = ("trouser", "pullover", "dress", "bag", "ankle-boot")


def main() -> None:
    """Save the demo's picture, run some jobs of every kind, and take a picture of each page."""
    with (
        tempfile.TemporaryDirectory() as home,
        chromium() as browser,
        run_service(Settings(home=Path(home), port=0), lambda _line: None) as url,
    ):
        fooled = save_demo_picture(url)
        proof = submit_certificate(url)
        others = submit_examples(url)
        compared = ",".join(job["id"] for job in others[:3])
        pages = {
            "new": "new",
            "job": f"jobs/{fooled['id']}",
            "certificate": f"jobs/{proof['id']}",
            "compare": f"compare?jobs={compared}",
            "models": "models",
            "model": f"models/{LITE0}",
        }
        for name, address in pages.items():
            take_page_picture(
                browser, url, f"dashboard-{name}", address, full_page=name in ("job", "certificate")
            )
        take_page_picture(browser, url, "dashboard-job-dark", pages["job"], color_scheme="dark")
        take_page_picture(browser, url, "dashboard-phone", pages["job"], **PHONE)
        with ThreadPoolExecutor(4) as pool:
            pool.submit(keep_busy, url)
            time.sleep(4)
            take_page_picture(browser, url, "dashboard-jobs", "jobs")
            take_page_picture(browser, url, "dashboard-operations", "operations", settle_seconds=14)


def save_demo_picture(url: str) -> dict[str, Any]:
    """Save what `touchstone demo` saves: the photo before and after, and the difference. Returns its job."""
    job, files = demo.attack_photo(url, Console(quiet=True))
    demo.side_by_side(job["result"], files).save(PICTURES / "espresso.png", optimize=True)
    return job


def submit_certificate(url: str) -> dict[str, Any]:
    """A certificate that looked often enough to show how its interval closed in."""
    fields = {"model": NOISE, "n": "30000", "sigma": "0.25", "rule": "e_process"}
    return submit_sample(url, "/v1/certificates/smoothing", "ankle-boot", **fields)


def submit_examples(url: str) -> list[dict[str, Any]]:
    """The same attack on three models, and some more of everything."""
    same = [
        submit_sample(url, "/v1/attacks/pgd", "bag", model=model, eps="0.1") for model in (PLAIN, LINF, NOISE)
    ]
    for cloth in CLOTHES:
        submit_sample(url, "/v1/attacks/fgsm", cloth, model=PLAIN, eps="8/255")
        submit_sample(url, "/v1/attacks/pgd", cloth, model=LINF, norm="l2", eps="1")
        submit_sample(url, "/v1/predictions", cloth, model=PLAIN)
        submit_sample(url, "/v1/certificates/smoothing", cloth, model=NOISE, n="2000")
    return same


def keep_busy(url: str) -> None:
    """Jobs that run while pictures are taken."""
    for seed in range(6):
        submit(url, "/v1/attacks/pgd", model=LITE0, eps="0.2/255", steps="60", seed=str(seed))
    for cloth in 6 * CLOTHES:
        submit_sample(url, "/v1/attacks/pgd", cloth, wait=0, model=LINF, eps="2/255", steps="2000")
        time.sleep(0.2)


def submit_sample(url: str, path: str, cloth: str, wait: int = 60, **fields: str) -> dict[str, Any]:
    """A job on one of the samples."""
    image = httpx2.get(f"{url}/samples/{cloth}.png").content
    headers = {"Prefer": f"wait={wait}"} if wait else {}
    answer = httpx2.post(
        url + path, data=fields, files={"image": (f"{cloth}.png", image)}, headers=headers, timeout=90
    )
    answer.raise_for_status()
    job: dict[str, Any] = answer.json()
    return job


def take_page_picture(
    browser: Browser,
    url: str,
    name: str,
    address: str,
    *,
    settle_seconds: float = 1.5,
    full_page: bool = False,
    **options: Any,
) -> None:
    """One page as it is once everything has arrived."""
    with open_watched_page(browser, url, PageErrors(), **options) as page:
        page.goto(f"/#/{address}")
        _wait_for_page(page)
        page.wait_for_timeout(1000 * settle_seconds)
        print(take_picture(page, name, full_page=full_page))


def _wait_for_page(page: Page) -> None:
    page.locator("h1").wait_for()
    page.locator(".loading").first.wait_for(state="detached")


if __name__ == "__main__":
    main()
