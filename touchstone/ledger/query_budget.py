"""Rows sent to remote models: counted here, so that budgets hold across workers and restarts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import redis

from touchstone.errors import QueryBudgetSpent
from touchstone.ledger.connection import map_redis_errors
from touchstone.ledger.scripts import Scripts

TOKEN_EXPIRY_MS = 60_000
"""Long enough to send a script again whose answer was lost."""


class QueryBudget:
    """Counts rows by the digest of a model's version; a `touchstone.engine.oracles.remote.SpendFunction`."""

    def __init__(self, client: redis.Redis, scripts: Scripts) -> None:
        self._client = client
        self._scripts = scripts

    def __call__(self, model: str, rows: int, *, budget: int | None, rate: float | None, token: str) -> float:
        """Seconds until the rows may be sent; 0 where they may be sent now, and then they are spent.

        A call repeated with the same token counts once. Raises QueryBudgetSpent and LedgerUnavailable.
        """
        verdict, number = self._scripts.run(
            "tenants/spend", model, rows, _format_number(budget), _format_number(rate), token, TOKEN_EXPIRY_MS
        )
        if verdict == "over":
            raise QueryBudgetSpent(
                f"the model's budget is {budget:,} rows; {number:,} were sent, and {rows} more are too many",
                budget=budget,
                spent=number,
            )
        return number / 1e6 if verdict == "wait" else 0.0

    def read_spent(self, models: Sequence[str]) -> dict[str, int]:
        """Rows ever sent to each of these versions."""
        with map_redis_errors(), self._client.pipeline(transaction=False) as pipe:
            for model in models:
                pipe.hget(f"ts:spent:{model}", "rows")
            answers: list[Any] = pipe.execute()
        return {model: int(rows or 0) for model, rows in zip(models, answers, strict=True)}


def _format_number(number: float | None) -> str:
    return "" if number is None else repr(number)
