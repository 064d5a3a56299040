"""A running plan, as the batcher keeps it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any

from touchstone.engine.device import pass_bytes
from touchstone.engine.oracles.oracle import Oracle
from touchstone.engine.pieces import rows_of_piece
from touchstone.engine.queries import Answer, AnyQuery, Gradient, NoisyLogits, PlanOf, Query, Repeat


@dataclass
class QueryCount:
    """Queries answered, one for each row."""

    forward: int = 0
    backward: int = 0
    surrogate: int = 0  # answered by other models than the one under attack


@dataclass(eq=False)
class Task:
    """A running plan: its open query, the rows of it that are answered, and the task's limits."""

    plan: PlanOf[Any]
    oracle: Oracle
    deterministic: bool = False
    deadline: float = float("inf")  # on time.monotonic's clock
    expires: bool = field(default=True, kw_only=True)  # false for the few queries that end a job in any case
    on_answer: Callable[[AnyQuery, Answer, QueryCount], None] | None = None
    memory: int = 0  # bytes that it may need for its images
    owner: str = ""  # owners share passes equally, however many tasks each has
    on_done: Callable[[Any, BaseException | None], None] = lambda _result, _error: None
    queries: QueryCount = field(default_factory=QueryCount)
    noise_key: tuple[int, ...] = ()  # of a model that answers at random
    number: int = 0  # of the open query
    canceled: bool = False
    ended: bool = False
    query: AnyQuery | None = None
    parts: list[Answer] = field(default_factory=list)
    answered_rows: int = 0

    @property
    def current_oracle(self) -> Oracle:
        """The oracle that the open query is for."""
        surrogate: Oracle | None = None if self.query is None else self.query.surrogate
        return self.oracle if surrogate is None else surrogate

    @property
    def most_rows(self) -> int | None:
        """How many rows of the open query a pass may take, whose images are bounded in bytes; None where
        that is no fewer than the oracle takes of images of any size.
        """
        oracle, query = self.current_oracle, self.query
        if query is None or isinstance(query, NoisyLogits):  # noise is drawn at the network's own size
            return None
        rows = rows_of_piece(query.row_values, pass_bytes(oracle.device))
        return None if rows >= oracle.rows else rows

    @property
    def group(self) -> Hashable:
        """Tasks of one group can share a pass: one model, gradients or not, or loops of one kind, and large
        images of as many rows a pass. A deterministic task is alone, and so is each task of a model whose
        answers depend on the batch.
        """
        query = self.query
        kind: Hashable = (isinstance(query, Gradient), 0 if query is None else query.backward_passes)
        if isinstance(query, Repeat):
            kind = query.kind
        alone = self.deterministic or not self.current_oracle.shared
        return (id(self.current_oracle), kind, id(self) if alone else None, self.most_rows)

    @property
    def remaining_rows(self) -> int:
        """Rows of the open query that are not answered yet."""
        return 0 if self.query is None else len(self.query) - self.answered_rows

    def row_keys(self, rows: int) -> Iterator[tuple[int, ...]]:
        """The keys of the next `rows` rows: seed, query, row."""
        return ((*self.noise_key, self.number, self.answered_rows + row) for row in range(rows))

    def slice_query(self, rows: int) -> Query | NoisyLogits:
        """The next `rows` rows of the open query."""
        if self.query is None or isinstance(self.query, Repeat):
            raise TypeError("a task without a query to the model has no rows to answer")
        if self.answered_rows == 0 and rows == len(self.query):
            return self.query
        return self.query[self.answered_rows : self.answered_rows + rows]
