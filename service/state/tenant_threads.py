"""Threads for calls that take long, in which tenants take turns."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

from anyio import CapacityLimiter, to_thread

from touchstone.sandbox.turns import Turns

T = TypeVar("T")
Args = TypeVarTuple("Args")


class TenantThreads:
    """At most `count` calls at once, and `reserve` more for tenants that have none running; to be used on one
    event loop.
    """

    def __init__(self, count: int, *, reserve: int = 1) -> None:
        self._turns = Turns(count, reserve=reserve)
        self._limiter = CapacityLimiter(count + reserve)

    async def run(self, tenant: str, call: Callable[[*Args], T], *args: *Args) -> T:
        """Wait for the tenant's turn, and call this in a thread."""
        come = asyncio.Event()
        turn = self._turns.join(tenant, come.set)
        try:
            await come.wait()
            return await to_thread.run_sync(call, *args, limiter=self._limiter)
        finally:
            self._turns.leave(turn)
