"""Virtual environments of the exporters, and the programs that run in them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tools.exporters.protocol import Facts

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build/exporters"
SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "CUDA_VISIBLE_DEVICES": "",
}


@dataclass(frozen=True)
class Environment:
    """Packages that fit together, and the program that exports with them.

    Those that are installed `alone` would bring another torch or a window system.
    """

    name: str
    program: str
    packages: tuple[str, ...]
    alone: tuple[str, ...] = ()
    torch: bool = False

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return FOLDER / self.name / "bin/python"

    def install(self) -> None:
        """Make the environment, unless it is complete."""
        complete = FOLDER / self.name / ".installed"
        if complete.exists():
            return
        print(
            f"installing {', '.join((*self.alone, *self.packages))} into {self.python.parents[1]}", flush=True
        )
        subprocess.run([sys.executable, "-m", "venv", self.python.parents[1]], check=True)
        if self.torch:
            subprocess.run([self.python, "tools/torch_index.py", "constraints.txt"], cwd=ROOT, check=True)
        if self.alone:
            self._pip("--no-deps", *self.alone)
        self._pip(*self.packages)
        complete.touch()

    def _pip(self, *words: str) -> None:
        quiet = ("-q", "--disable-pip-version-check")
        subprocess.run([self.python, "-m", "pip", "install", *quiet, *words], cwd=ROOT, check=True)


TORCH = "torch==2.13.0"
WITH_TORCH = (
    TORCH,
    "onnx",
    "onnxruntime",
    "onnxscript",
    "transformers",
    "safetensors",
    "opencv-python-headless",
)
ENVIRONMENTS = (
    Environment(
        "torch",
        "tools.exporters.torch_files",
        (*WITH_TORCH, "onnxsim", "onnxslim", "onnxconverter-common", "pyyaml", "psutil", "requests"),
        # PyPI's torchvision is built for CUDA; its Python code runs with any build of the same torch.
        alone=("torchvision==0.28.0", "timm", "ultralytics"),
        torch=True,
    ),
    Environment("tensorflow", "tools.exporters.keras_files", ("tensorflow-cpu", "tf2onnx", "onnx")),
    Environment("paddle", "tools.exporters.paddle_files", ("paddlepaddle", "paddle2onnx", "packaging")),
)


class Exporter:
    """The program of an environment; one that ends is started again for the next case.

    Its own messages go to a log beside the environment.
    """

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._start()

    def _start(self) -> None:
        words = [str(self._environment.python), "-m", self._environment.program]
        with (FOLDER / f"{self._environment.name}.log").open("a") as log:
            self._process = subprocess.Popen(
                words, cwd=ROOT, env=os.environ | SETTINGS, stdin=-1, stdout=-1, stderr=log, text=True
            )
        hello = self._read_answer()
        self.cases: tuple[str, ...] = tuple(hello["cases"])
        self.versions: dict[str, str] = hello["versions"]

    def export(self, case: str, path: Path) -> Facts:
        """Have a case exported to this path; the answer has an `error` where that failed."""
        assert self._process.stdin is not None  # noqa: S101 - it was started with pipes
        self._process.stdin.write(json.dumps({"case": case, "path": str(path)}) + "\n")
        self._process.stdin.flush()
        try:
            return self._read_answer()
        except EOFError:
            self._start()
            return {"error": "the exporter ended the process"}

    def _read_answer(self) -> Facts:
        assert self._process.stdout is not None  # noqa: S101 - it was started with pipes
        line = self._process.stdout.readline()
        if not line:
            raise EOFError(
                f"{self._environment.program} ended with {self._process.wait()}; see its log in {FOLDER}"
            )
        answer: Facts = json.loads(line)
        return answer

    def close(self) -> None:
        """End the program."""
        self._process.kill()
        self._process.wait()
