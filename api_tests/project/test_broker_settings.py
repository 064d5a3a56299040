"""Versions and settings that reliability depends on, compared with a list of the important ones."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from touchstone.settings import Settings
from workers import serve
from workers.celery_app import celery_app

ROOT = Path(__file__).parents[2]
NEEDED = {
    "task_serializer": "json",
    "accept_content": ["json"],
    "result_backend": None,
    "task_ignore_result": True,
    "worker_prefetch_multiplier": 1,
    "worker_disable_prefetch": True,
    "worker_enable_remote_control": False,
    "broker_connection_max_retries": None,
    "broker_connection_retry_on_startup": True,
    "broker_channel_error_retry": True,
}
TRANSPORT = {
    "socket_connect_timeout": 3,
    "socket_timeout": 10,
    "socket_keepalive": True,
    "health_check_interval": 10,
}
MIN_VERSIONS = {
    "celery": "5.7",
    "kombu": "5.7",
    "onnx": "1.22",
    "pillow": "12.3",
    "python-multipart": "0.0.31",
    "redis": "8",
    "torch": "2.10",
}


def test_celery_app_has_the_settings_the_ledger_needs() -> None:
    settings = celery_app("redis://localhost/0").conf
    assert {name: settings[name] for name in NEEDED} == NEEDED
    assert settings["broker_transport_options"].items() >= TRANSPORT.items()


def test_worker_starts_with_thread_pool_without_mingle_or_gossip(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    app = celery_app("redis://localhost/0")
    given: dict[str, Any] = {}

    class FakeCeleryWorker:
        exitcode = 0

        def __init__(self, **options: Any) -> None:
            given.update(options)

        def start(self) -> None:
            pass

    with patch.object(type(app), "Worker", FakeCeleryWorker):
        assert serve._consume(app, Settings(home=tmp_path), 7) == 0
    needed = {"pool": "threads", "concurrency": 7, "without_mingle": True, "without_gossip": True}
    assert given.items() >= needed.items()


@pytest.mark.parametrize("name", MIN_VERSIONS)
def test_installed_and_pinned_versions_are_not_older_than_known_good(name: str) -> None:
    pins = dict(
        re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text().lower(), re.MULTILINE)
    )
    assert Version(pins[name]) >= Version(MIN_VERSIONS[name])
    assert Version(version(name).partition("+")[0]) >= Version(MIN_VERSIONS[name])


@pytest.mark.parametrize("name", sorted(set(MIN_VERSIONS) - {"kombu"}))  # Celery requires its own
def test_pyproject_requirement_excludes_versions_older_than_known_good(name: str) -> None:
    text = (ROOT / "pyproject.toml").read_text()
    requirements = [Requirement(line) for line in re.findall(r'^    "([a-z][^"]+)"', text, re.MULTILINE)]
    [requirement] = [one for one in requirements if one.name == name]
    assert not requirement.specifier.contains(_version_below(MIN_VERSIONS[name]))


def _version_below(text: str) -> str:
    """A version just below this one."""
    *head, last = map(int, text.split("."))
    return ".".join(map(str, [*head, last - 1, 999]))
