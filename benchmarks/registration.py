"""From a file of 20 MB to the first attack: registering a model, another one after it, for which a process
waits already, and attacking the first, which is not loaded then.

There is no peer to run beside it: no other service of the field takes models.
"""

from __future__ import annotations

import io
import json
import statistics
import tempfile
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import torch

from benchmarks.networks import LITE0
from benchmarks.record import save
from touchstone.models.loader import load_plain
from touchstone.models.zoo import find_manifest
from touchstone.registration.trial_child import MODULE
from touchstone.settings import Settings
from touchstone.supervisor.up import run_service

PHOTO = Path("touchstone/photos/coffee.png")
ROUNDS = 3
NAME = "lite0-of-my-own"
PAUSE_SECONDS = 5.0
"""Between two registrations: the process that waits imports PyTorch meanwhile."""


def main() -> None:
    """Register EfficientNet-Lite0 as a user's ONNX file twice, attack it cold and warm."""
    file = export_onnx()
    rounds = [measure_registration(file) for _ in range(ROUNDS)]
    figures = {name: round(statistics.median(one[name] for one in rounds), 2) for name in rounds[0]}
    save("registration", {"megabytes": round(len(file) / 1e6, 1), **figures})


def export_onnx() -> bytes:
    """The zoo's network for photos, through PyTorch's exporter."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            load_plain(find_manifest(LITE0)),
            (torch.rand(2, 3, 224, 224),),
            buffer,
            dynamo=False,
            opset_version=17,
            input_names=["x"],
            dynamic_axes={"x": {0: "n"}},
        )
    return buffer.getvalue()


def measure_registration(file: bytes) -> dict[str, float]:
    """Seconds of each part, on a service that has just started."""
    with (
        tempfile.TemporaryDirectory() as home,
        run_service(Settings(home=Path(home), port=0), lambda _line: None) as url,
    ):
        began = time.perf_counter()
        registered = register(url, file, NAME)
        registering = time.perf_counter() - began
        time.sleep(PAUSE_SECONDS)
        began = time.perf_counter()
        following = register(url, file, NAME + "-again")
        again = time.perf_counter() - began
        memory = measure_waiting_memory()
        cold, first = attack(url)
        warm, _ = attack(url)
    return {
        "seconds_to_register": registering,
        "of_which_trial": registered["timings"]["compute"],
        "seconds_to_register_the_next": again,
        "of_which_trial_of_the_next": following["timings"]["compute"],
        "megabytes_of_the_waiting_process": memory,
        "seconds_to_first_attack": cold,
        "of_which_loading": first["timings"]["prepare"],
        "seconds_to_second_attack": warm,
    }


def measure_waiting_memory() -> float:
    """Megabytes that the process which waits for a model has for itself, once it has imported everything."""
    time.sleep(PAUSE_SECONDS)
    private = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if MODULE.encode() in (folder / "cmdline").read_bytes():
                lines = (folder / "smaps_rollup").read_text().splitlines()
                private += sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))
    return private * 1024 / 1e6


def register(url: str, file: bytes, name: str) -> dict[str, Any]:
    """The job of one request, once the model can be used."""
    model_manifest = find_manifest(LITE0)
    declared = {
        "id": name,
        "classes": list(model_manifest.classes),
        "input": model_manifest.input.model_dump(mode="json"),
        "mean": list(model_manifest.mean),
        "std": list(model_manifest.std),
    }
    parts = {"file": ("model.onnx", file)}
    return submit_and_wait(url, parts, {"manifest": json.dumps(declared)}, "/v1/models")


def attack(url: str) -> tuple[float, dict[str, Any]]:
    """One attack on the registered model: seconds, and the job."""
    image = {"image": ("coffee.png", PHOTO.read_bytes())}
    fields = {"model": NAME, "eps": "2/255", "steps": "10"}
    began = time.perf_counter()
    job = submit_and_wait(url, image, fields, "/v1/attacks/pgd")
    return time.perf_counter() - began, job


def submit_and_wait(url: str, files: dict[str, Any], fields: dict[str, str], path: str) -> dict[str, Any]:
    """Submit, and wait for the job's end."""
    answer = httpx2.post(url + path, data=fields, files=files, headers={"Prefer": "wait=60"}, timeout=120)
    answer.raise_for_status()
    job: dict[str, Any] = answer.json()
    if job["status"] != "succeeded":
        raise RuntimeError(job)
    return job


if __name__ == "__main__":
    main()
