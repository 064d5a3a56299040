"""A worker as Celery users usually run one: the solo pool, one job per task, nothing shared."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

from celery.apps.worker import Worker

from workers import __main__ as worker

if __name__ == "__main__":
    original_init = Worker.__init__

    def init_solo(self: Any, *args: Any, **options: Any) -> None:
        original_init(self, *args, **{**options, "pool": "solo", "concurrency": 1})

    Worker.__init__ = partial(init_solo).func
    sys.exit(worker.main())
