"""The page for a new job: its fields, and the request that it sends."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, FilePayload, Page, expect

from api_tests.support.browser import PHONE, OpenPage, PageErrors, axe, open_watched_page
from api_tests.support.fake_service import Api, png
from touchstone.methods import catalogue
from touchstone.models import zoo

IMAGENET, CLOTHES = "imagenet-efficientnet-lite0", "fashion-mnist-cnn"
HOSTILE = "<img src=x onerror='document.title=1'>;\".png"
REFUSED = "status of 422"
STUB_JOB_PAGE = "export const title = () => 'A job'; export const show = async () => {};"


@pytest.fixture(autouse=True)
def worker(api: Api) -> Iterator[None]:
    """A live worker, so that no page reports that none is."""
    api.ledger.workers.heartbeat("gpu1-4711", {})
    yield
    api.ledger.workers.remove("gpu1-4711")


def stub_job_page(page: Page) -> Page:
    """Show an empty page for each job."""
    page.route(
        "**/app/pages/job.js", lambda route: route.fulfill(body=STUB_JOB_PAGE, content_type="text/javascript")
    )
    return page


@pytest.fixture
def page(page: Page) -> Page:
    return stub_job_page(page)


@pytest.fixture(scope="module")
def loaded_page(browser: Browser, api: Api) -> Iterator[Page]:
    """One page for several tests: only the hash of its URL changes, so it is not loaded again."""
    page_errors = PageErrors()
    page_errors.allow("503.*/readyz")
    with open_watched_page(browser, api.origin, page_errors) as page:
        yield stub_job_page(page)
    assert page_errors.list_unexpected() == []


def open_form(page: Page, **choices: str) -> None:
    """Open the form, and wait for its image and its cost estimate."""
    page.goto("/#/new?" + "&".join(f"{name}={value}" for name, value in choices.items()))
    expect(page.locator(".preview")).to_be_visible()
    if choices.get("eps") != "2":
        expect(page.locator(".run")).to_contain_text("passes")


def run(page: Page, api: Api) -> dict[str, Any]:
    """Submit the form; the job that it creates."""
    page.get_by_role("button", name="Run").click()
    return read_shown_job(page, api)


def read_shown_job(page: Page, api: Api) -> dict[str, Any]:
    """The job whose page is shown."""
    page.wait_for_url("**/#/jobs/*")
    job: dict[str, Any] = api.client.get("/v1/jobs/" + page.url.rpartition("/")[2]).json()
    return job


def changed_values(schema: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """A value for each parameter that differs from its default."""
    for name, field in schema["properties"].items():
        yield name, _other(field)


def _other(field: dict[str, Any]) -> Any:
    """A valid value other than the default."""
    one, default = field.get("anyOf", [field])[0], field.get("default")
    if one["type"] == "boolean":
        return not default
    if "enum" in field:
        return field["enum"][-1] if field["enum"][-1] != default else field["enum"][0]
    if one["type"] in ("string", "array"):
        return field["examples"][0] if one["type"] == "string" else ["fashion-mnist-cnn-linf"]
    if one["type"] == "integer":
        return 3 if default is None else default + 2  # some must stay even
    if "anyOf" in field:
        return 0.125
    least = max(one.get("minimum", 0), one.get("exclusiveMinimum", 0))
    return 0.75 * default if 0.75 * default > least else min(1.25 * default or 0.5, one.get("maximum", 1e9))


def set_field(page: Page, name: str, value: Any) -> None:
    """Enter a value into a field, as a user would."""
    field = page.locator(f"form [name={name}]")
    if isinstance(value, bool):
        field.set_checked(value)
    elif field.first.get_attribute("type") == "radio":
        page.locator(f"form [name={name}][value={value}]").check()
    elif field.evaluate("({tagName}) => tagName") == "SELECT":
        field.select_option(str(value))
    else:
        field.fill(",".join(value) if isinstance(value, list) else str(value))


def test_one_click_attacks_a_photo_with_default_parameters(page: Page, api: Api) -> None:
    page.goto("/")
    expect(page.get_by_role("heading", level=1)).to_have_text("Can this classifier be fooled?")
    expect(page.locator(".run")).to_contain_text("Up to 122 forward + 80 backward passes")
    job = run(page, api)
    assert (job["kind"], job["method"], job["model"]["id"]) == ("attack", "pgd", IMAGENET)
    assert (job["image"]["width"], job["image"]["height"]) == (451, 300)
    usual = catalogue()["pgd"]()
    assert job["parameters"] == usual.model_dump(mode="json") | usual.resolve_defaults(1000)


@pytest.mark.parametrize("name", catalogue())
def test_every_parameter_of_a_method_is_sent(loaded_page: Page, api: Api, name: str) -> None:
    page, method = loaded_page, catalogue()[name]
    open_form(page, kind=method.kind, method=name, model=CLOTHES)
    page.get_by_text("Advanced").click()
    wanted = dict(changed_values(method.model_json_schema()))
    for field, value in wanted.items():
        set_field(page, field, value)
    page.get_by_label("Seed").fill("7")
    page.wait_for_url("**seed=7*")
    job = run(page, api)
    assert (job["method"], job["parameters"], job["seed"]) == (name, wanted, 7)


def test_prediction_form_takes_its_fields_from_openapi(page: Page, api: Api) -> None:
    open_form(page, kind="prediction", model=CLOTHES)
    page.get_by_label("Top").fill("3")
    page.locator("[name=defence][value=smoothing]").check()
    assert run(page, api)["parameters"] == {
        "top": 3,
        "defence": "smoothing",
        "sigma": 0.25,
        "n": 1000,
        "alpha": 0.001,
    }


def test_default_values_are_not_sent(page: Page) -> None:
    open_form(page)
    eps = page.get_by_role("textbox", name="Eps")
    eps.fill("4/255")
    expect(page.locator("pre")).to_contain_text("-F eps=4/255")
    eps.fill("0.03137254901960784")
    expect(page.locator("pre")).not_to_contain_text("eps")
    page.get_by_role("slider", name="Eps").press("ArrowLeft")
    expect(eps).to_have_value("7/255")


def test_fraction_in_the_address_fills_the_number_field(page: Page) -> None:
    open_form(page, kind="attack", method="geoda", model=CLOTHES, low="51/255")
    expect(page.get_by_label("Low")).to_have_value("0.2")


def test_server_error_is_shown_at_its_field(page: Page, page_errors: PageErrors) -> None:
    page_errors.expect(REFUSED)
    open_form(page, eps="2")
    eps = page.get_by_role("textbox", name="Eps")
    expect(page.get_by_text("did you mean 2/255?")).to_be_visible()
    page.get_by_role("button", name="Run").click()
    expect(eps).to_be_focused()
    expect(eps).to_have_attribute("aria-invalid", "true")
    page.locator("[name=norm][value=l2]").check()
    expect(page.get_by_text("did you mean 2/255?")).to_be_hidden()
    expect(eps).to_have_attribute("aria-invalid", "false")


def test_invalid_field_in_closed_advanced_section_is_revealed(page: Page) -> None:
    open_form(page)
    page.get_by_text("Advanced").click()
    page.get_by_label("Deadline").fill("9999")
    page.get_by_text("Advanced").click()
    page.get_by_role("button", name="Run").click()
    expect(page.get_by_label("Deadline")).to_be_focused()


def test_cost_above_the_limit_is_shown_before_submission(page: Page) -> None:
    open_form(page, kind="certificate", method="smoothing", n="300000")
    expect(page.get_by_role("status").filter(has_text="300,140 passes exceed the limit of")).to_be_visible()


def test_class_is_chosen_by_name_or_by_name_with_index(page: Page, api: Api) -> None:
    open_form(page, model=IMAGENET)
    missiles = [i for i, name in enumerate(zoo.find_manifest(IMAGENET).classes) if name == "missile"]
    assert len(missiles) == 2
    page.get_by_label("Target").fill(f"missile · {missiles[1]}")
    page.get_by_label("Label", exact=True).fill("LYNX")
    job = run(page, api)
    assert (job["target"], job["label"]) == (missiles[1], 287)


def test_earlier_job_prefills_the_form_and_can_be_changed(page: Page, api: Api) -> None:
    fields = {"model": CLOTHES, "eps": "2/255", "steps": 9, "random_start": False, "target": 3, "seed": 5}
    before = api.run_job(**fields, norm="l1")
    page.goto(f"/#/new?from={before['id']}&steps=11")
    expect(page.get_by_role("textbox", name="Eps")).to_have_value("2/255")
    expect(page.locator(".view")).to_contain_text("9 × 8")
    page.get_by_label("Seed").fill("0")
    page.get_by_label("Target").fill("")
    page.wait_for_url("**target=null*")
    page.reload()
    expect(page.locator(".view")).to_contain_text("9 × 8")
    after = run(page, api)
    assert after["parameters"] == {**before["parameters"], "steps": 11}
    assert after["image"] == before["image"]
    assert (after["seed"], after.get("target")) == (0, None)


def test_address_keeps_the_choices_across_a_reload(page: Page) -> None:
    open_form(page)
    page.get_by_label("Model").select_option(CLOTHES)
    page.get_by_label("Bag").check()
    page.get_by_label("Steps").fill("3")
    page.wait_for_url("**sample=bag.png*steps=3*")
    page.reload()
    expect(page.get_by_label("Steps")).to_have_value("3")
    expect(page.get_by_label("Bag")).to_be_checked()


def test_submission_by_two_clicks_makes_one_job(page: Page, api: Api) -> None:
    open_form(page, seed="424242")
    page.get_by_role("button", name="Run").dblclick()
    read_shown_job(page, api)
    jobs = api.client.get("/v1/jobs").json()["items"]
    assert [job["seed"] for job in jobs].count(424242) == 1


def test_hostile_file_name_is_shown_and_quoted_as_text(page: Page, api: Api) -> None:
    open_form(page)
    file: FilePayload = {"name": HOSTILE, "mimeType": "image/png", "buffer": png(31, 20)}
    page.get_by_label("Choose an image").set_input_files(file)
    expect(page.locator(".view")).to_contain_text(HOSTILE)
    expect(page.locator(".view")).to_contain_text("31 × 20")
    words = shlex.split(page.locator("pre").inner_text().replace("\\\n", ""))
    assert words[2] == "image=@" + '"' + HOSTILE.replace('"', '\\"') + '"'
    page.get_by_label("Python").check()
    compile(page.locator("pre").inner_text(), "snippet", "exec")
    assert run(page, api)["image"]["width"] == 31
    expect(page).to_have_title("A job · Touchstone")


def test_image_is_accepted_by_drop_and_paste(page: Page) -> None:
    open_form(page)
    for event, member, width in (("drop", "dataTransfer", 21), ("paste", "clipboardData", 22)):
        page.evaluate(
            """([event, member, bytes]) => {
              const data = new DataTransfer();
              data.items.add(new File([new Uint8Array(bytes)], "a.png", {type: "image/png"}));
              const made = event === "drop" ? DragEvent : ClipboardEvent;
              document.querySelector("h1").dispatchEvent(new made(event, {[member]: data, bubbles: true}));
            }""",
            [event, member, list(png(width, 20))],
        )
        expect(page.locator(".view")).to_contain_text(f"{width} × 20")


def test_file_that_is_no_image_is_reported_at_the_image_field(page: Page, page_errors: PageErrors) -> None:
    page_errors.expect(REFUSED)
    open_form(page)
    chooser = page.get_by_label("Choose an image")
    chooser.set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": b"words"})
    expect(page.get_by_text("No preview")).to_be_visible()
    page.get_by_role("button", name="Run").click()
    expect(page.get_by_text("no PNG, JPEG or WebP")).to_be_visible()
    expect(chooser).to_be_focused()


def test_form_is_filled_and_sent_by_keyboard(page: Page, api: Api) -> None:
    open_form(page, model=CLOTHES)
    page.get_by_label("Choose an image").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    expect(page.get_by_label("Pullover")).to_be_checked()
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    certificate = page.get_by_label("Certificate", exact=True)
    expect(certificate).to_be_checked()
    expect(certificate).to_be_focused()
    expect(page.locator(".preview")).to_be_visible()
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.name") == "n":
            break
    page.keyboard.press("Control+A")
    page.keyboard.type("500")
    page.keyboard.press("Enter")
    job = read_shown_job(page, api)
    assert (job["method"], job["parameters"]["n"], job["image"]["width"]) == ("smoothing", 500, 28)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_form_is_accessible_and_does_not_overflow_on_a_phone(
    open_page: OpenPage, api: Api, scheme: Any
) -> None:
    page = open_page(api.origin, **PHONE, color_scheme=scheme)
    open_form(page, method="pgd", eps="3/255")
    for details in page.locator("details").all():
        details.evaluate("(details) => details.open = true")
    assert axe(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["viewport"]["width"]
