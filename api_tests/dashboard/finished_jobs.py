"""Finished jobs for the pages that list them: plausible results, and texts that contain markup."""

from __future__ import annotations

import io
from itertools import count
from typing import Any

from PIL import Image, ImageOps
from playwright.sync_api import Page, Request, expect

from api_tests.support.fake_service import FakeJob, encode_image
from touchstone.ledger.records import JobFailure, Timings

HOSTILE_TEXT = "<img src=x onerror=alert(1)><script>alert(2)</script>"


def prediction_of(label: int, confidence: float, name: str | None = None) -> dict[str, Any]:
    """The prediction of a model."""
    one = {"label": label, "name": name or f"class {label}", "confidence": confidence}
    return {**one, "top": [one]}


def finish_attack(work: FakeJob, *, success: bool = True, size: float = 1.5, name: str | None = None) -> None:
    """Finish an attack."""
    before = Image.open(io.BytesIO(work.blobs.get(work.job.submission.image.digest)))
    result = {
        "outcome": "success" if success else "failure",
        "success": success,
        "original": prediction_of(1, 0.9, name),
        "adversarial": prediction_of(2 if success else 1, 0.7),
        "perturbation": {"linf": 8 / 255, "l2": size},
        "queries": {"forward": round(10 * size), "backward": 10},
    }
    files = {"adversarial.png": work.store(encode_image(ImageOps.invert(before)))}
    work.finish(status="succeeded", result=result, timings=Timings(compute=0.1), artifacts=files)


def finish_certificate(work: FakeJob, radius: float) -> None:
    """Finish a certificate."""
    result = {
        "norm": "l2",
        "radius": radius,
        "abstained": False,
        "decision": None,
        "predicted_class": {"label": 1, "name": "class 1"},
        "sampling": {"alpha": 0.001},
    }
    work.finish(status="succeeded", result=result, timings=Timings(compute=0.2))


def finish_with_error(work: FakeJob, detail: str = "the model answered NaN") -> None:
    """Finish a job with an error."""
    work.finish(status="failed", error=JobFailure(code="non_finite_output", detail=detail))


def finish_by_kind(work: FakeJob) -> None:
    """Finish a job by its kind; every fifth seed fails."""
    submission = work.job.submission
    if submission.seed % 5 == 4:
        finish_with_error(work)
    elif submission.kind == "attack":
        finish_attack(work, success=submission.seed % 2 == 0)
    elif submission.kind == "certificate":
        finish_certificate(work, 0.5)
    else:
        work.finish(
            status="succeeded", result={"original": prediction_of(3, 0.8)}, timings=Timings(compute=0.01)
        )


def row_ids(page: Page) -> list[str]:
    """The ids of the rows, from the top."""
    ids: list[str] = page.evaluate("[...document.querySelectorAll('tbody tr')].map((row) => row.dataset.id)")
    return ids


def expect_rows(page: Page, ids: list[str]) -> None:
    """Wait until these jobs and no others are shown, in this order."""
    rows = "[...document.querySelectorAll('tbody tr')].map((row) => row.dataset.id).join()"
    page.wait_for_function(f"(ids) => {rows} === ids", arg=",".join(ids))


def open_list(page: Page, address: str = "/#/jobs") -> Page:
    """Open the list, and wait until it has been loaded again after its event stream began."""
    loads = count(1)

    def is_second_load(request: Request) -> bool:
        return "/v1/jobs?" in request.url and next(loads) == 2

    with page.expect_request(is_second_load):
        page.goto(address)
    expect(page.locator("[aria-busy=false]")).to_be_attached()
    return page
