"""Registering a model in the browser, and the pages of its job, which has no image."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from api_tests.support.browser import PHONE, OpenPage, PageErrors, axe
from api_tests.support.external_data import DATA, write_external, zip_of
from api_tests.support.fake_service import (
    MODEL_PROBE,
    Api,
    FakeJob,
    fail,
    png,
    register_model as finish_registration,
)
from api_tests.support.own_models import REGISTRATION_FIELDS, linear_onnx
from api_tests.support.wait import TIMEOUT_SECONDS
from touchstone.models.measurements import ExampleAccuracy, ExampleWarning

IS_BELOW_HEADER = """(field) => {
  const header = document.querySelector("header").getBoundingClientRect();
  return field.getBoundingClientRect().top >= header.bottom;
}"""


def register_model(api: Api, model: str) -> dict[str, Any]:
    """A registration job that has ended."""
    parts = {
        "file": ("a.onnx", linear_onnx()),
        "manifest": ("m", json.dumps({**REGISTRATION_FIELDS, "id": model})),
    }
    job: dict[str, Any] = api.client.post("/v1/models", files=parts, headers={"Prefer": "wait=10"}).json()
    return job


def fill_in(page: Page, **values: str) -> None:
    for label, text in values.items():
        page.get_by_label(label.replace("_", " "), exact=True).fill(text)


def test_model_is_registered_with_the_form_after_a_refused_file(
    page: Page, api: Api, tmp_path: Path, page_errors: PageErrors
) -> None:
    file = tmp_path / "net.onnx"
    file.write_bytes(b"\x1f\x8b and the rest")
    page.goto("/#/models")
    page.get_by_role("link", name="Register a model").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Register a model")
    page.get_by_label("File", exact=True).set_input_files(file)
    fill_in(page, Name="by-hand", Classes="cat\ndog", Input_size="8", Mean="0.5, 0.5 0.5")
    fill_in(page, Standard_deviation="1,1,1")
    page_errors.allow("/v1/models")
    page.get_by_role("button", name="Register").click()
    expect(page.get_by_role("alert")).to_contain_text("gzip: unpack it first")
    expect(page.get_by_label("File", exact=True)).to_be_focused()
    file.write_bytes(linear_onnx())
    page.get_by_label("File", exact=True).set_input_files(file)
    page.get_by_role("button", name="Register").click()
    expect(page.locator(".sentence")).to_have_text("Registered: by-hand can be used")
    card = api.client.get("/v1/models/by-hand").json()
    assert (card["classes"], card["mean"], card["std"]) == (["cat", "dog"], [0.5] * 3, [1.0] * 3)
    assert (card["input"]["height"], card["input"]["width"]) == (8, 8)
    page.get_by_role("link", name="by-hand").first.click()
    expect(page.get_by_role("heading", level=1)).to_have_text("by-hand")
    expect(page.locator("dt", has_text="Versions").locator("+ dd")).to_contain_text(card["digest"][7:19])


def test_invalid_field_is_scrolled_into_view_below_the_header(page: Page, tmp_path: Path) -> None:
    page.set_viewport_size({"width": 1280, "height": 500})
    page.goto("/#/models?new")
    (tmp_path / "net.onnx").write_bytes(linear_onnx())
    page.get_by_label("File", exact=True).set_input_files(tmp_path / "net.onnx")
    fill_in(page, Name="With Capitals", Classes="cat\ndog", Input_size="8")
    page.mouse.wheel(0, 10_000)
    page.get_by_role("button", name="Register").click()
    name = page.get_by_label("Name", exact=True)
    expect(name).to_be_focused()
    page.wait_for_function(IS_BELOW_HEADER, arg=name.element_handle())


def test_registration_job_page_shows_the_probe(page: Page, api: Api) -> None:
    job = register_model(api, "shown")
    page.goto(f"/#/jobs/{job['id']}")
    probe = page.locator("section", has=page.get_by_role("heading", name="Probe"))
    for name, value in {
        "Gradient check: agrees": "yes",
        "Latency per image with gradient": "0.2 ms",
        "Gradient check: error": "0.0001",
        "Memory per image": "4.1 kB",
    }.items():
        expect(probe.locator("dt", has_text=name).first.locator("+ dd")).to_have_text(value)
    expect(page.locator("canvas")).to_have_count(0)
    expect(page.get_by_role("button", name="Run again and compare")).to_have_count(0)
    expect(page.locator("dt", has_text="Architecture").locator("+ dd")).to_have_text("onnx")
    expect(page.get_by_role("heading", name="Files")).to_be_visible()
    assert axe(page) == []


def test_failed_or_queued_registration_is_shown_without_an_image(page: Page, api: Api) -> None:
    with api.worker.with_behavior(fail):
        job = register_model(api, "unfit")
    page.goto(f"/#/jobs/{job['id']}")
    expect(page.get_by_role("heading", name="Job failed")).to_be_visible()
    expect(page.get_by_role("link", name="Run again with changes")).to_have_count(0)
    with api.worker.pause():
        parts = {
            "file": ("a", linear_onnx(seed=4)),
            "manifest": ("m", json.dumps({**REGISTRATION_FIELDS, "id": "late"})),
        }
        job = api.client.post("/v1/models", files=parts).json()
        page.goto(f"/#/jobs/{job['id']}")
        expect(page.get_by_text("Queued: next to run")).to_be_visible()
    expect(page.locator(".sentence")).to_have_text("Registered: late can be used")


def test_model_of_two_files_is_registered_with_examples_and_their_warning_is_shown(
    page: Page, api: Api, tmp_path: Path
) -> None:
    file = write_external(tmp_path)
    (tmp_path / "e.zip").write_bytes(zip_of({"cat/a.png": png(), "dog/b.png": png()}))
    warning = ExampleWarning(code="preprocessing_looks_wrong", detail="2 would be with the range -1,1")
    found = ExampleAccuracy(count=2, correct=1, accuracy=0.5, warnings=(warning,))
    page.goto("/#/models?new")
    page.get_by_label("File", exact=True).set_input_files(file)
    page.get_by_label("Weights in a second file").set_input_files(tmp_path / DATA)
    page.get_by_label("Examples").set_input_files(tmp_path / "e.zip")
    fill_in(page, Name="two-files", Classes="cat\ndog", Input_size="8")

    def try_slowly(work: FakeJob) -> None:
        work.report(3, 6)
        seen.wait(TIMEOUT_SECONDS)
        finish_registration(work, MODEL_PROBE.model_copy(update={"examples": found}))

    seen = threading.Event()
    with api.worker.with_behavior(try_slowly):
        page.get_by_role("button", name="Register").click()
        expect(page.get_by_text("Gradient check: step 4 of 6")).to_be_visible()
        seen.set()
        expect(page.locator(".sentence")).to_have_text("Registered: two-files can be used")
    examples = page.locator("section", has=page.get_by_role("heading", name="Examples"))
    expect(examples).to_contain_text("50.0 %, 1 of 2")
    expect(examples).to_contain_text("Warning: 2 would be with the range -1,1")
    page.goto("/#/models/two-files")
    expect(examples).to_contain_text("Warning: 2 would be with the range -1,1")
    assert axe(page) == []


def test_registration_is_listed_and_compared_with_other_jobs(page: Page, api: Api) -> None:
    job, other = register_model(api, "beside"), api.run_job()
    page.goto("/#/jobs?kind=registration")
    row = page.locator(f"tr[data-id='{job['id']}']")
    expect(row).to_contain_text("beside can be used")
    expect(page.locator(f"tr[data-id='{other['id']}']")).to_have_count(0)
    page.goto(f"/#/compare?jobs={job['id']},{other['id']}")
    expect(page.locator("thead th")).to_have_count(2)
    expect(page.locator("thead img")).to_have_count(1)
    image = page.locator("tr", has=page.get_by_role("rowheader", name="Image", exact=True))
    expect(image.locator("td").first).to_have_text("–")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_registration_form_is_accessible_and_does_not_overflow_on_a_phone(
    open_page: OpenPage, api: Api, page_errors: PageErrors, scheme: str
) -> None:
    page_errors.allow("/readyz")
    page = open_page(api.origin, **PHONE, color_scheme=scheme)
    page.goto("/#/models?new")
    expect(page.get_by_label("Classes")).to_be_visible()
    assert axe(page) == []
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
