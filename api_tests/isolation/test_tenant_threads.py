"""Calls in threads: tenants take turns at them, and who is gone waits no longer."""

from __future__ import annotations

import asyncio
import threading

import pytest

from service.state.tenant_threads import TenantThreads


def test_call_waits_for_one_call_of_a_tenant_with_many() -> None:
    ended: list[str] = []

    async def run_all() -> None:
        threads = TenantThreads(1, reserve=0)
        many = [asyncio.create_task(threads.run("many", ended.append, f"many {n}")) for n in range(5)]
        await asyncio.gather(*many, threads.run("one", ended.append, "one"))

    asyncio.run(run_all())
    assert ended == ["many 0", "one", "many 1", "many 2", "many 3", "many 4"]


def test_call_of_a_tenant_that_has_none_takes_the_reserve() -> None:
    async def run_all() -> list[str]:
        threads, go_on = TenantThreads(1, reserve=1), threading.Event()
        many = [asyncio.create_task(threads.run("many", go_on.wait)) for _ in range(3)]
        await asyncio.sleep(0)
        answer = await threads.run("one", lambda: "answered")
        running = [call for call in many if not call.done()]
        go_on.set()
        await asyncio.gather(*many)
        return [answer, *("waited" for _ in running)]

    assert asyncio.run(run_all()) == ["answered", "waited", "waited", "waited"]


def test_canceled_call_gives_up_its_place_in_the_line() -> None:
    async def run_all() -> str:
        threads, go_on = TenantThreads(1, reserve=0), threading.Event()
        first = asyncio.create_task(threads.run("many", go_on.wait))
        second = asyncio.create_task(threads.run("many", go_on.wait))
        await asyncio.sleep(0)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        go_on.set()
        await first
        return await threads.run("one", lambda: "answered")

    assert asyncio.run(run_all()) == "answered"


def test_call_that_raises_ends_its_turn() -> None:
    def fail() -> None:
        raise KeyError

    async def run_all() -> str:
        threads = TenantThreads(1, reserve=0)
        with pytest.raises(KeyError):
            await threads.run("one", fail)
        return await threads.run("two", lambda: "answered")

    assert asyncio.run(run_all()) == "answered"
