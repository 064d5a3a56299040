"""What a worker does before it serves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from workers import __main__ as program


@pytest.mark.parametrize("arguments", [[], ["--quarantine", "w1-quarantine-1"]])
def test_worker_limits_its_memory_before_it_serves(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    done: list[Any] = []
    monkeypatch.setenv("TOUCHSTONE_WORKER_MEMORY", "123456789")
    for name in ("logs", "LeaseRenewal", "open_registered_store", "ledger_url", "Ledger", "OutboundClient"):
        monkeypatch.setattr(program, name, Mock())
    monkeypatch.setattr(program, "Engine", lambda *_: SimpleNamespace(device=SimpleNamespace(type="cpu")))
    monkeypatch.setattr(program, "warm_up", Mock())
    monkeypatch.setattr(program, "limit_memory", lambda limit, device: done.append((limit, device)))
    for name in ("serve", "serve_quarantine"):
        monkeypatch.setattr(program, name, lambda *_, **__: done.append("serves"))
    program.main(arguments)
    assert done == [(123456789, "cpu"), "serves"]
