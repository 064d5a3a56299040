"""A job's page: what it shows of real attacks and certificates, live and afterwards."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import APIResponse, Locator, Page, expect

from api_tests.support.browser import PHONE, HeldRequests, OpenPage, PageErrors, axe, open_job, wait_for_paint
from api_tests.support.fake_service import Api
from touchstone.check import check
from touchstone.engine import STOPPING_RULES, certified_radius
from touchstone.images import difference
from touchstone.training.datasets import fashion_mnist_sample

SMALL = "fashion-mnist-cnn"
PHOTO = Path(__file__).parents[2] / "touchstone/photos/chelsea.png"
READOUT = re.compile(r"x (\d+), y (\d+)R (\d+) → (\d+) .*?G (\d+) → (\d+) .*?B (\d+) → (\d+) ")


def submit_job(live_url: str, path: str, image: bytes, *, wait: int = 60, **fields: Any) -> dict[str, Any]:
    """A job of the real service; without a wait, it may not have ended."""
    headers = {"Prefer": f"wait={wait}"} if wait else {}
    files = {"image": ("a.png", image)}
    answer = httpx2.post(f"{live_url}/v1/{path}", files=files, data=fields, headers=headers, timeout=90)
    assert answer.status_code == (200 if wait else 202), answer.text
    job: dict[str, Any] = answer.json()
    return job


def garment() -> bytes:
    """A pair of trousers, 28 by 28."""
    buffer = io.BytesIO()
    Image.fromarray(fashion_mnist_sample().images[1]).save(buffer, "PNG")
    return buffer.getvalue()


def click_twice(page: Page, name: str, path: str) -> list[APIResponse]:
    """The responses to both clicks; the page receives neither before both are there."""
    held = HeldRequests(page, re.compile(f"{path}$"), times=2)
    page.get_by_role("button", name=name).dblclick()
    both = [held.take(), held.take()]
    answers = [route.fetch() for route in both]
    for route, answer in zip(both, answers, strict=True):
        route.fulfill(response=answer)
    return answers


@pytest.fixture(scope="module")
def photo_attack(live_url: str) -> dict[str, Any]:
    """An attack on a photo, at 2/255."""
    fields: dict[str, Any] = {"model": "imagenet-efficientnet-lite0", "eps": "2/255", "steps": 5}
    return submit_job(live_url, "attacks/pgd", PHOTO.read_bytes(), **fields)


@pytest.fixture(scope="module")
def certificate(live_url: str) -> dict[str, Any]:
    """A certificate that can be continued."""
    fields: dict[str, Any] = {
        "model": "fashion-mnist-cnn-noise-0.25",
        "sigma": 0.25,
        "n": 1500,
        "rule": "e_process",
    }
    return submit_job(live_url, "certificates/smoothing", garment(), **fields)


def read_pixel(page: Page) -> list[int]:
    """x, y, then the values of red, green and blue, each before and after."""
    wait_for_paint(page)
    found = READOUT.search(page.locator(".readout").text_content() or "")
    assert found
    return [int(value) for value in found.groups()]


def pixels(live_url: str, job: dict[str, Any], name: str) -> NDArray[np.uint8]:
    """A file of the job, decoded by Pillow."""
    file = httpx2.get(f"{live_url}{job['links']['artifacts'][name]}").content
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))


def color_at(pane: Locator, across: float, down: float) -> list[int]:
    """The color that a pane shows at a position given as fractions of its size."""
    shown: list[int] = pane.evaluate(
        """(canvas, [x, y]) => {
            const at = [x * canvas.width, y * canvas.height];
            return [...canvas.getContext("2d").getImageData(...at, 1, 1).data].slice(0, 3);
        }""",
        [across, down],
    )
    return shown


def test_attack_page_summarizes_the_result(live_page: Page, photo_attack: dict[str, Any]) -> None:
    open_job(live_page, photo_attack)
    before, after = photo_attack["result"]["original"], photo_attack["result"]["adversarial"]
    assert before["name"] != after["name"] == "Egyptian Mau"
    sentence = live_page.locator(".sentence")
    expect(sentence).to_have_text(
        f"Fooled: “{before['name']}” {before['confidence']:.0%} became “{after['name']}” "
        f"{after['confidence']:.0%} with a perturbation of L∞ 2/255.".replace("%", " %")
    )
    expect(live_page.get_by_text("saved 8-bit PNG")).to_be_visible()
    rows = live_page.locator(".bars tbody", has_text="Egyptian Mau").locator("tr")
    expect(rows.nth(1)).to_contain_text(f"after{100 * after['confidence']:.1f} %")
    assert rows.nth(1).locator(".bar").bounding_box()["width"] > 3  # type: ignore[index]
    expect(live_page.locator(".facts", has_text="Similarity")).to_contain_text("2/255, 100 % of eps")


def test_pixel_readout_matches_the_files(
    live_page: Page, live_url: str, photo_attack: dict[str, Any]
) -> None:
    open_job(live_page, photo_attack)
    before, after = (pixels(live_url, photo_attack, f"{name}.png") for name in ("original", "adversarial"))
    pane = live_page.locator("canvas").nth(1)
    for across, down in ((0.01, 0.02), (0.31, 0.6), (0.98, 0.97)):
        box = pane.bounding_box()
        assert box
        live_page.mouse.move(box["x"] + across * box["width"], box["y"] + down * box["height"])
        x, y, *values = read_pixel(live_page)
        assert [x, y] == pytest.approx([across * 451 - 0.5, down * 300 - 0.5], abs=0.6)
        assert values == [value for pair in zip(before[y, x], after[y, x], strict=True) for value in pair]


def test_difference_pane_shows_the_exact_pixel_difference(
    live_page: Page, live_url: str, photo_attack: dict[str, Any]
) -> None:
    open_job(live_page, photo_attack)
    before, after = (pixels(live_url, photo_attack, f"{name}.png") for name in ("original", "adversarial"))
    live_page.locator(".panes").focus()
    for _ in range(12):
        live_page.keyboard.press("+")
    live_page.keyboard.press("ArrowRight")
    x, y, *_ = read_pixel(live_page)
    middle = (before[y : y + 1, x : x + 1], after[y : y + 1, x : x + 1])
    pane = live_page.locator("canvas").nth(2)
    for factor in (photo_attack["result"]["difference_factor"], 20):
        live_page.get_by_label("Difference times").fill(str(factor))
        wait_for_paint(live_page)
        assert color_at(pane, 0.5, 0.5) == difference(*middle, factor)[0, 0].tolist()
    live_page.get_by_label("Difference shown").select_option("absolute")
    wait_for_paint(live_page)
    change = np.abs(middle[1].astype(int) - middle[0])[0, 0]
    assert color_at(pane, 0.5, 0.5) == (20 * change).tolist()


def test_wheel_and_drag_keep_the_pixel_under_the_pointer(
    live_page: Page, photo_attack: dict[str, Any]
) -> None:
    open_job(live_page, photo_attack)
    box = live_page.locator("canvas").first.bounding_box()
    assert box
    x, y = box["x"] + 100, box["y"] + 70
    live_page.mouse.move(x, y)
    at = read_pixel(live_page)[:2]
    for _ in range(6):
        live_page.mouse.wheel(0, -300)
    expect(live_page.locator(".panes.zoomed")).to_be_visible()
    live_page.mouse.move(x + 1, y)
    assert read_pixel(live_page)[:2] == pytest.approx(at, abs=1)
    at = read_pixel(live_page)[:2]
    live_page.mouse.down()
    live_page.mouse.move(x + 61, y - 40)
    live_page.mouse.up()
    live_page.mouse.move(x + 61.2, y - 40)
    assert read_pixel(live_page)[:2] == at
    live_page.mouse.move(x + 161, y - 40)
    assert read_pixel(live_page)[0] - at[0] in (3, 4), "a pixel fills 32 of the screen's"


def test_two_finger_pinch_zooms_the_image(
    open_page: OpenPage, live_url: str, photo_attack: dict[str, Any]
) -> None:
    page = open_page(live_url, **PHONE)
    open_job(page, photo_attack)
    pane = page.locator("canvas").first
    pane.scroll_into_view_if_needed()
    box = pane.bounding_box()
    assert box
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    touch = page.context.new_cdp_session(page)

    def fingers(kind: str, *apart: int) -> None:
        points = [{"x": x + side * one, "y": y, "id": side + 1} for one in apart for side in (-1, 1)]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    fingers("touchStart", 20)
    for apart in (30, 50, 80, 120):
        fingers("touchMove", apart)
    fingers("touchEnd")
    expect(page.locator(".panes.zoomed")).to_be_visible()
    assert read_pixel(page)


def test_blinking_is_slow_and_replaced_under_reduced_motion(
    open_page: OpenPage, live_url: str, photo_attack: dict[str, Any]
) -> None:
    page = open_page(live_url, reduced_motion="no-preference")
    open_job(page, photo_attack)
    page.evaluate("""() => {
        window.swaps = [];
        new MutationObserver(() => swaps.push(performance.now()))
            .observe(document.querySelectorAll("figcaption strong")[1], {childList: true});
    }""")
    page.get_by_role("button", name="Blink").click()
    swaps = page.evaluate("""async () => {
        while (swaps.length < 4) await new Promise((resolve) => setTimeout(resolve, 50));
        return swaps;
    }""")
    assert (swaps[3] - swaps[0]) / 3 > 1000 / 6, "two changes are one flash; three a second are too many"
    still = open_page(live_url, reduced_motion="reduce")
    open_job(still, photo_attack)
    expect(still.get_by_role("button", name="Blink")).to_have_count(0)
    still.get_by_role("button", name="Hold for the original").hover()
    still.mouse.down()
    expect(still.locator("figcaption strong").nth(1)).to_have_text("Original")
    still.mouse.up()
    expect(still.locator("figcaption strong").nth(1)).to_have_text("Adversarial")


def test_certificate_page_shows_votes_and_downloads_a_valid_certificate(
    live_page: Page, certificate: dict[str, Any], tmp_path: Path
) -> None:
    open_job(live_page, certificate)
    sampling = certificate["result"]["sampling"]
    expect(live_page.locator(".sentence")).to_have_text(f"Certified: {certificate['result']['statement']}")
    expect(live_page.locator(".bars")).to_contain_text("Trouser")
    lower = f"{100 * sampling['pA_lower']:.1f} %"
    plot = live_page.get_by_role("img", name=f"After {sampling['n_used']:,} samples")
    expect(plot).to_have_attribute("aria-label", re.compile(re.escape(f"between {lower} and")))
    with live_page.expect_download() as download:
        live_page.get_by_role("button", name="certificate.json").click()
    assert download.value.suggested_filename == "certificate.json"
    download.value.save_as(tmp_path / "certificate.json")
    assert all(one.agrees for one in check(json.loads((tmp_path / "certificate.json").read_text())))


def test_largest_possible_radius_is_that_of_unanimous_votes(
    live_page: Page, certificate: dict[str, Any]
) -> None:
    open_job(live_page, certificate)
    shown = live_page.locator(".radii li.largest b").text_content() or ""
    sampling = certificate["result"]["sampling"]
    n, alpha = sampling["n_used"], sampling["alpha"]
    bound = STOPPING_RULES["e_process"].lower(n, n, n=sampling["n_max"], alpha=alpha)
    assert abs(float(shown) - certified_radius(bound, sampling["sigma"])) < 2e-4


def test_certificate_is_continued_by_one_job_despite_two_clicks(
    live_page: Page, page_errors: PageErrors, certificate: dict[str, Any]
) -> None:
    page_errors.expect("422")
    open_job(live_page, certificate)
    more = live_page.get_by_label("More samples")
    more.fill("1000000000")
    live_page.get_by_role("button", name="Continue").click()
    expect(live_page.get_by_role("alert").filter(has_text=re.compile(".+"))).to_be_visible()
    more.fill("500")
    answers = click_twice(live_page, "Continue", "/continue")
    assert [answer.status for answer in answers] == [202, 202]
    assert answers[0].json()["id"] == answers[1].json()["id"]
    expect(live_page.locator("dt", has_text="Continues")).to_be_visible()
    expect(live_page.locator(".sentence")).to_be_visible()


def test_running_job_shows_live_progress_and_can_be_canceled(live_page: Page, live_url: str) -> None:
    fields: dict[str, Any] = {"model": SMALL, "steps": 10_000, "early_stop": "false"}
    job = submit_job(live_url, "attacks/pgd", garment(), wait=0, **fields)
    open_job(live_page, job)
    expect(live_page.get_by_text(re.compile(r"Step [1-9][\d,]* of 10,000"))).to_be_visible()
    curve = live_page.get_by_role("img", name=re.compile("^Loss: "))
    expect(curve).to_be_visible()
    begins = (curve.get_attribute("aria-label") or "").partition(",")[0]
    live_page.get_by_role("button", name="Cancel").click()
    expect(live_page.get_by_role("heading", name="Job canceled")).to_be_visible()
    expect(live_page.get_by_role("button", name="Delete")).to_be_visible()
    live_page.reload()
    expect(curve).to_have_attribute("aria-label", re.compile(f"^{re.escape(begins)}, "))


def test_rerun_shows_whether_the_bytes_agree(live_page: Page, live_url: str) -> None:
    fields: dict[str, Any] = {"model": SMALL, "execution": "deterministic", "eps": "4/255"}
    open_job(live_page, submit_job(live_url, "attacks/fgsm", garment(), **fields))
    live_page.get_by_role("button", name="Run again and compare").click()
    expect(live_page.locator(".verdict")).to_contain_text(
        re.compile(r"Rerun of job \w{8}: the bytes are identical\.")
    )


def test_rerun_by_two_clicks_makes_one_job(page: Page, api: Api) -> None:
    open_job(page, api.run_job())
    answers = click_twice(page, "Run again and compare", "/rerun")
    assert answers[0].json()["id"] == answers[1].json()["id"]
    expect(page).to_have_url(re.compile(answers[0].json()["id"]))


@pytest.mark.parametrize("kind", ["photo_attack", "certificate"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_job_page_is_accessible_and_does_not_overflow(
    open_page: OpenPage, live_url: str, kind: str, scheme: str, request: pytest.FixtureRequest
) -> None:
    page = open_page(live_url, **(PHONE if scheme == "dark" else {}), color_scheme=scheme)
    open_job(page, request.getfixturevalue(kind))
    page.wait_for_timeout(300)
    assert axe(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
