"""The pages of models: their cards, probes, classes, and the jobs that ran on them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from api_tests.support.browser import PHONE, OpenPage, axe
from api_tests.support.fake_service import Api, fail, succeed
from touchstone.models import zoo
from touchstone.models.measurements import Probe

IMAGENET = "imagenet-efficientnet-lite0"
LOADED = "fashion-mnist-cnn-noise-0.50"
HOSTILE = "<img src=x onerror=\"document.title='Run'\">"
BATCHES = {"batch_invariant": True, "logits_difference": 4e-7, "gradient_difference": None}
PROBE = Probe(
    measured_at=datetime(2026, 11, 22, 9, 30, tzinfo=UTC),
    device="cuda:0",
    torch="2.13.0",
    load_seconds=1.5,
    bytes=18_569_312,
    frozen=True,
    rows=16,
    gradient_rate=46.25,
    single_rate=21,
    forward_rate=73,
    softmax=False,
    **BATCHES,
)


@pytest.fixture(autouse=True)
def worker(api: Api) -> Iterator[None]:
    """A live worker that has one model loaded."""
    api.ledger.workers.heartbeat(
        "gpu1-4711",
        {"resident_models": [{"id": LOADED, "digest": zoo.find_manifest(LOADED).digest, "bytes": 7}]},
    )
    yield
    api.ledger.workers.remove("gpu1-4711")


def models(api: Api) -> list[dict[str, Any]]:
    """The models of the API."""
    items: list[dict[str, Any]] = api.client.get("/v1/models").json()["items"]
    return items


def fact_value(page: Page, name: str) -> Locator:
    """The value beside a name in a definition list."""
    return page.locator("dt", has_text=name).first.locator("+ dd")


def fill_in(page: Page, label: str, text: str) -> None:
    """Type into a field."""
    page.get_by_label(label).fill(text)


def test_model_cards_show_every_model_with_all_its_accuracies(page: Page, api: Api) -> None:
    page.goto("/#/models")
    cards = page.locator("article")
    expect(cards).to_have_count(len(models(api)))
    for model in models(api):
        card = cards.filter(has=page.get_by_role("link", name=model["id"], exact=True))
        expect(card).to_contain_text(f"{len(model['classes']):,} classes")
        expect(card).to_contain_text(f"{model['input']['width']} × {model['input']['height']}")
        loaded = "Loaded on 1 worker" if model["id"] == LOADED else "Not loaded"
        for text in (model["architecture"], model["licence"], loaded):
            expect(card).to_contain_text(text)
        bars = card.locator(".accuracies li")
        expect(bars).to_have_count(len(model["accuracy"]))
        for bar, accuracy in zip(bars.all(), model["accuracy"], strict=True):
            expect(bar).to_contain_text(f"{100 * accuracy['value']:.1f} %")
            expect(bar).to_contain_text(
                f"{'Measured on' if accuracy['measured'] else 'Cited for'} {accuracy['data']}"
            )
        attack = card.get_by_role("link", name="Attack this model")
        expect(attack).to_have_attribute("href", f"#/new?model={model['id']}")


def test_models_are_filtered_by_class_name(page: Page) -> None:
    page.goto("/#/models")
    fill_in(page, "Filter", "Komodo")
    expect(page.locator("article:visible h2")).to_have_text([IMAGENET])
    assert page.url.endswith("#/models?q=komodo")
    page.reload()
    expect(page.locator("article:visible h2")).to_have_text([IMAGENET])
    fill_in(page, "Filter", "no such class")
    expect(page.get_by_role("heading", name="No matching models")).to_be_visible()


def test_model_page_shows_the_whole_card(page: Page, api: Api) -> None:
    model = api.client.get(f"/v1/models/{IMAGENET}").json()
    page.goto(f"/#/models/{IMAGENET}")
    expect(page.get_by_role("heading", level=1)).to_have_text(IMAGENET)
    for name, value in {
        "Digest": model["digest"],
        "Architecture": model["architecture"],
        "Input": "224 × 224, color",
        "Preprocessing": "shorter side to 256, then center crop, bicubic",
        "Mean": "0.498, 0.498, 0.498",
        "Standard deviation": "0.502, 0.502, 0.502",
        "Output": "logits",
        "Parameters": f"{model['parameters']:,}",
        "Weights": model["weights"]["package"],
        "License": model["licence"],
        "Origin": model["provenance"],
        "Loaded on": "no worker",
    }.items():
        expect(fact_value(page, name)).to_contain_text(value)
    notes = page.locator(".accuracies .hint")
    for bar, accuracy in zip(notes.all(), model["accuracy"], strict=True):
        expect(bar).to_contain_text(accuracy["note"][-30:])
    expect(page.get_by_text("Not loaded yet: the first job loads and probes it.")).to_be_visible()


def test_classes_are_searched_by_name_and_index(page: Page) -> None:
    classes = zoo.find_manifest(IMAGENET).classes
    page.goto(f"/#/models/{IMAGENET}")
    shown = page.locator(".classes li")
    expect(shown).to_have_count(50)
    fill_in(page, "Name or index", "281")
    expect(shown).to_have_text([f"281{classes[281]}"])
    fill_in(page, "Name or index", "TERRIER")
    found = [f"{i}{name}" for i, name in enumerate(classes) if "terrier" in name.casefold()]
    expect(shown).to_have_text(found)
    expect(page.get_by_text(f"{len(found)} of 1,000")).to_be_visible()


def test_digest_is_copied_to_the_clipboard(page: Page) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto(f"/#/models/{IMAGENET}")
    page.get_by_role("button", name="Copy digest").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == zoo.find_manifest(IMAGENET).digest


def test_model_page_shows_its_probe_and_the_workers_that_loaded_it(page: Page, api: Api) -> None:
    model = zoo.find_manifest(LOADED)
    api.ledger.probes.store(model.digest, PROBE)
    page.goto(f"/#/models/{model.id}")
    for name, value in {
        "Device": "cuda:0",
        "Measured at": "Nov 22, 2026, 9:30:00",
        "Time to load": "1.5 s",
        "Weights in memory": "19 MB",
        "Frozen": "yes",
        "Rows per pass": "16",
        "Gradients, full batches": "46.3 per second",
        "Batch invariant": "yes",
        "Logits difference": "4.00e-7",
        "Gradient difference": "not finite",
        "Softmax": "no",
        "Loaded on": "gpu1-4711",
    }.items():
        expect(fact_value(page, name)).to_contain_text(value)
    page.goto("/#/models")
    expect(page.locator("article", has_text=model.id)).to_contain_text("Loaded on 1 worker")


def test_model_history_lists_only_jobs_on_that_model(page: Page, api: Api) -> None:
    model = "fashion-mnist-cnn-noise-0.25"
    jobs = []
    for behavior in (succeed, fail, succeed):
        with api.worker.with_behavior(behavior):
            jobs.append(api.run_job(model=model)["id"])
    api.run_job(model="fashion-mnist-cnn")
    page.goto(f"/#/models/{model}")
    rows = page.get_by_role("table", name="The last jobs on this model").locator("tbody tr")
    expect(rows.locator(".badge")).to_have_text(["fooled", "failed", "fooled"])
    links = [link.get_attribute("href") for link in rows.get_by_role("link").all()]
    assert links == [f"#/jobs/{job}" for job in reversed(jobs)]
    expect(rows.nth(1)).to_contain_text("non_finite_output")
    expect(page.locator("p .badge")).to_have_text(["2 fooled", "1 failed"])
    all_jobs = page.get_by_role("link", name="All jobs on this model")
    expect(all_jobs).to_have_attribute("href", f"#/jobs?model={model}")


def test_user_supplied_names_are_never_rendered_as_markup(page: Page, api: Api) -> None:
    model = models(api)[0]
    accuracy = [{"data": HOSTILE, "value": 0.5, "measured": False, "note": HOSTILE}]
    names = dict.fromkeys(("id", "architecture", "licence", "provenance", "digest"), HOSTILE)
    model |= {**names, "classes": [HOSTILE], "accuracy": accuracy, "resident": [HOSTILE]}
    model["probe"] = {"device": HOSTILE, HOSTILE: HOSTILE}
    job = api.run_job()
    job |= {"method": HOSTILE, "result": {"success": True, "original": {"name": HOSTILE}, "adversarial": {}}}
    page.route("**/v1/models", lambda route: route.fulfill(json={"items": [model], "cursor": None}))
    page.route("**/v1/models/*", lambda route: route.fulfill(json=model))
    page.route("**/v1/jobs?*", lambda route: route.fulfill(json={"items": [job], "cursor": None}))
    page.goto("/#/models")
    page.get_by_role("link", name=HOSTILE, exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_have_text(HOSTILE)
    expect(page.locator(".classes")).to_contain_text(HOSTILE)
    expect(page.locator("tbody")).to_contain_text(f"{HOSTILE} → ?")
    expect(page.locator("main img")).to_have_count(0)
    assert page.title() != "Run"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("where", ["#/models", f"#/models/{IMAGENET}"])
def test_model_pages_are_accessible_and_do_not_overflow_on_a_phone(
    open_page: OpenPage, api: Api, where: str, scheme: str
) -> None:
    page = open_page(api.origin, **PHONE, color_scheme=scheme)
    page.goto(f"/{where}")
    expect(page.locator(".accuracies").first).to_be_visible()
    assert axe(page) == []
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
