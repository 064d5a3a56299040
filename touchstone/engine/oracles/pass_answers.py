"""The answers to the queries of one pass, of which rows arrive in any order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from touchstone.engine.oracles.remote_protocols import Scores
from touchstone.engine.queries import Answer
from touchstone.errors import Failure, JobCanceled, RemoteAnswer


class PassAnswers:
    """What is known of the rows of one pass: their scores, and the failures of the queries that own them."""

    def __init__(self, owners: Sequence[int]) -> None:
        self._owners = owners  # the number of the query that each row belongs to
        self._scores: list[Scores | None] = [None] * len(owners)
        self._failures: dict[int, Failure] = {}

    def owners_of(self, rows: range) -> set[int]:
        """The queries that these rows belong to."""
        return set(self._owners[rows.start : rows.stop])

    def have_failed(self, rows: range) -> bool:
        """Whether all queries that these rows belong to have failed."""
        return self.owners_of(rows) <= set(self._failures)

    def open_owners(self, wanted: Sequence[bool]) -> set[int]:
        """The queries that are wanted and have not failed; `wanted` has an entry for each query."""
        return {owner for owner, flag in enumerate(wanted) if flag and owner not in self._failures}

    def fail(self, rows: range, failure: Failure) -> None:
        """Fail the queries that these rows belong to, unless they failed before."""
        for owner in self.owners_of(rows):
            self._failures.setdefault(owner, failure)

    def store(self, rows: range, scores: Sequence[Scores | RemoteAnswer]) -> None:
        """Keep the scores of these rows, or what is wrong with them."""
        for row, score in zip(rows, scores, strict=True):
            if isinstance(score, RemoteAnswer):
                self._failures.setdefault(self._owners[row], score)
            else:
                self._scores[row] = score

    def split_by_owner(self, rows: range) -> list[range]:
        """These rows, a range for each query."""
        owned = [
            [row for row in rows if self._owners[row] == owner] for owner in sorted(self.owners_of(rows))
        ]
        return [range(own[0], own[-1] + 1) for own in owned]

    def answer(self, owner: int) -> Answer | Failure:
        """The answer to a query, or its failure."""
        if owner in self._failures:
            return self._failures[owner]
        scores = [score for score, one in zip(self._scores, self._owners, strict=True) if one == owner]
        known = [score for score in scores if score is not None]
        if len(known) < len(scores):
            return JobCanceled("the answer is no longer wanted")
        return Answer(torch.from_numpy(np.stack(known)).float())
