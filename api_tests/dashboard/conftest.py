"""Fixtures of tests in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from api_tests.support.browser import CHROMIUM, NO_CHROMIUM, OpenPage, PageErrors, chromium, open_watched_page
from api_tests.support.fake_service import Api, run_service as run_fake_service
from touchstone.settings import Settings
from touchstone.supervisor.up import run_service

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without Chromium, skip these tests in one line for each file."""
    if CHROMIUM:
        return
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.skip(reason=NO_CHROMIUM))


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """One Chromium for these tests, closed before any others: they may need an event loop."""
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="package")
def live_url(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a service with a real worker, as `touchstone up` starts it."""
    settings = Settings(home=tmp_path_factory.mktemp("live"), port=0, redis_url=None)
    with run_service(settings, lambda _line: None) as url:
        yield url


@pytest.fixture
def api_with_keys(settings: Settings) -> Iterator[Api]:
    """A service with a fake worker that requires keys."""
    with run_fake_service(settings.model_copy(update={"require_keys": True})) as api:
        yield api


@pytest.fixture
def page_errors() -> Iterator[PageErrors]:
    """The errors of this test's pages; an unexpected one fails the test."""
    page_errors = PageErrors()
    yield page_errors
    assert page_errors.list_unexpected() == []


@pytest.fixture
def open_page(browser: Browser, page_errors: PageErrors) -> Iterator[OpenPage]:
    """Open a page of an origin in a fresh context: `open_page(live_url, **PHONE, color_scheme="dark")`."""
    with ExitStack() as stack:
        yield lambda origin, **options: stack.enter_context(
            open_watched_page(browser, origin, page_errors, **options)
        )


@pytest.fixture
def page(open_page: OpenPage, api: Api, page_errors: PageErrors) -> Page:
    """A page of the service with a fake worker, which sends no heartbeats."""
    page_errors.allow("/readyz")
    return open_page(api.origin)


@pytest.fixture
def live_page(open_page: OpenPage, live_url: str) -> Page:
    """A page of the service with a real worker."""
    return open_page(live_url)
