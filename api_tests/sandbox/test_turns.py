"""Tenants take turns at places, by how many they hold and how long they have had them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from touchstone.sandbox.turns import Turn, Turns


class Line:
    """Turns with a clock of their own, and who has begun one, in order."""

    def __init__(self, places: int, reserve: int = 0) -> None:
        self.now = 0.0
        self.begun: list[str] = []
        self.turns = Turns(places, reserve=reserve, clock=lambda: self.now)

    def join(self, tenant: str) -> Turn:
        return self.turns.join(tenant, lambda: self.begun.append(tenant))

    def leave(self, turn: Turn, *, after: float = 0.0) -> None:
        self.now += after
        self.turns.leave(turn)


def test_tenant_with_many_waiting_delays_another_by_one_turn_only() -> None:
    line = Line(1)
    first, *_ = [line.join("many") for _ in range(12)]
    line.join("one")
    line.leave(first, after=10)
    assert line.begun == ["many", "one"]


def test_next_is_the_tenant_that_was_served_for_the_shortest_time() -> None:
    line = Line(1)
    turns = [line.join(tenant) for tenant in ("slow", "quick", "slow", "quick", "quick", "slow")]
    for turn, seconds in zip((turns[0], turns[1], turns[3], turns[4]), (10, 1, 1, 1), strict=True):
        line.leave(turn, after=seconds)
    assert line.begun == ["slow", "quick", "quick", "quick", "slow"]


def test_place_goes_to_the_tenant_that_holds_the_fewest() -> None:
    line = Line(2)
    long = line.join("many")
    short = line.join("many")
    line.join("many")
    line.join("one")
    line.leave(short)
    assert line.begun == ["many", "many", "one"], "the long turn has not been charged yet"
    line.leave(long)
    assert line.begun[-1] == "many"


def test_reserved_place_is_for_a_tenant_that_holds_none() -> None:
    line = Line(2, reserve=1)
    turns = [line.join("many") for _ in range(5)]
    assert line.begun == ["many"] * 2
    one = line.join("one")
    line.join("one")
    assert line.begun == ["many", "many", "one"]
    line.leave(one)
    assert line.begun == ["many", "many", "one", "one"], "it holds none again"
    line.leave(turns[0])
    assert line.begun == ["many", "many", "one", "one"], "two places are in use, so only the reserve is free"


def test_who_stops_waiting_is_passed_over_and_charged_nothing() -> None:
    line = Line(1)
    first, second = line.join("one"), line.join("two")
    line.join("three")
    line.leave(second)
    line.leave(first)
    assert line.begun == ["one", "three"]


def test_threads_hold_as_many_places_as_there_are() -> None:
    turns, held, most = Turns(2, reserve=1), [0], [0]

    def hold(number: int) -> None:
        with turns.hold(f"tenant-{number % 2}"):
            held[0] += 1
            most[0] = max(most[0], held[0])
            held[0] -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(hold, range(200)))
    assert most[0] <= 3
    assert held == [0]


def test_turn_ends_where_its_block_raises() -> None:
    turns = Turns(1)
    with pytest.raises(KeyError), turns.hold("one"):
        raise KeyError
    with turns.hold("two"):
        pass
