"""What a run has found so far, on disk after every figure."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu.clock import OutOfTime, time_box

Note = Callable[[str, Any], None]
"""Keeps one figure, or several by their names."""


@dataclass
class Report:
    """Figures by block and name; the file is complete JSON whenever the run is cut."""

    path: Path
    found: dict[str, Any] = field(default_factory=dict)

    def run_block(self, name: str, seconds: float, block: Callable[[Note], None]) -> None:
        """Run a block for at most these seconds; what it fails with is recorded, and the next one can run."""
        figures: dict[str, Any] = {}
        self.found[name] = figures
        began = time.perf_counter()

        def note(key: str, value: Any) -> None:
            figures[key] = value
            self.write()
            print(f"  {key}: {json.dumps(value)}", flush=True)

        print(f"\n{name}, at most {seconds:g} s", flush=True)
        try:
            with time_box(seconds):
                block(note)
        except OutOfTime:
            note("cut", f"after {seconds:g} s")
        except Exception as error:  # noqa: BLE001 - the blocks after it still tell something
            note("failed", f"{type(error).__name__}: {error}"[:500])
        note("seconds", round(time.perf_counter() - began, 1))

    def write(self) -> None:
        """Put all that is known into the file, at once."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.found, indent=2) + "\n")
        part.replace(self.path)
