"""Train a small model by a recipe: seeded, resumable, with a manifest that says how it was trained."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from touchstone.engine.device import tune_allocator
from touchstone.errors import InvalidParameter
from touchstone.ledger.records import Progress
from touchstone.models.architectures import find_architecture
from touchstone.models.manifest import ID, Accuracy, InputSpec, Manifest, Weights
from touchstone.training.datasets import CLASSES, Split
from touchstone.training.recipes import Recipe, Standard, in_eval_mode, run_pgd

MEAN, STD = 0.286, 0.353
"""Of the training images of Fashion-MNIST."""

ReportProgress = Callable[[Progress, dict[str, float]], None]
"""Called after each step with the steps done and planned and the loss, and at the end with the accuracy. An
exception that it raises ends the training, which can be resumed."""

MAX_ROBUSTNESS_DROP = 0.2
"""By how much the accuracy under PGD on held-out images may fall below its best before training stops."""

MAX_VALIDATION_IMAGES = 512
"""Images held out for validation, at most; a tenth of a small data set."""


@dataclass(frozen=True)
class TrainingPlan:
    """Everything that the weights depend on, besides the images and the versions of the libraries."""

    recipe: Recipe = field(default_factory=Standard)
    architecture: str = "small-cnn"
    epochs: int = 8
    batch: int = 128
    rate: float = 2e-3
    seed: int = 0


class NormalizedNetwork(nn.Module):
    """A network with normalization before it: images (B, C, H, W) in [0,1] to logits."""

    def __init__(self, net: nn.Module, mean: float, std: float) -> None:
        super().__init__()
        self.net, self.mean, self.std = net, mean, std

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits."""
        logits: Tensor = self.net((x - self.mean) / self.std)
        return logits


def train(
    plan: TrainingPlan,
    data: tuple[Split, Split],
    out: Path,
    *,
    model: str | None = None,
    report: ReportProgress = lambda _progress, _metric: None,
) -> Manifest:
    """Train on `data[0]`, measure on all of `data[1]`, and write weights and manifest of `model` to `out`.

    After each epoch a checkpoint is written; where one of the same plan is found, training continues from it
    and ends in the weights that an uninterrupted run would have. Where the recipe has a `validation_eps`, an
    epoch in which robustness collapses is undone and ends the training. Raises InvalidParameter.
    """
    tune_allocator()
    train_split, test_split = data
    name = model or f"fashion-mnist-cnn{plan.recipe.suffix}"
    _check_output(name, out)
    run = _Training(plan, train_split, out / f"{name}.checkpoint.safetensors")
    run.run(report)
    accuracy = measure_accuracy(run.net, test_split)
    report(Progress(done=run.steps, total=run.steps), {"accuracy": accuracy})
    manifest = _write_model(run, name, out, test_split, accuracy)
    run.checkpoint.unlink(missing_ok=True)
    return manifest


def _check_output(name: str, out: Path) -> None:
    """Raise at once what would otherwise fail after hours."""
    if not re.fullmatch(ID, name):
        raise InvalidParameter(
            f"model: an id has lower-case letters, digits, dots, dashes and underscores, not {name[:60]!r}",
            field="model",
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidParameter(f"out: {out} cannot be made a folder: {error.strerror}", field="out") from None


def measure_accuracy(net: nn.Module, split: Split, *, batch: int = 500) -> float:
    """The accuracy on a split of a network that takes pixels, in eval mode."""
    net.eval()
    right = 0
    with torch.no_grad():
        for start in range(0, len(split), batch):
            x, y = _tensors(split, slice(start, start + batch))
            right += int((net(x).argmax(1) == y).sum())
    return right / len(split)


def one_cycle_rate(step: int, steps: int, peak: float) -> float:
    """The learning rate of a step: up to `peak` over the first 30 per cent, then down along a cosine."""
    rise = 0.3 * steps
    if step < rise:
        return peak * (0.04 + 0.96 * step / rise)
    return peak * max(1e-3, (1 + math.cos(math.pi * (step - rise) / (steps - rise))) / 2)


def augment(x: Tensor, noise: Generator, *, max_shift: int = 2) -> Tensor:
    """Each image (B, C, H, W) shifted by up to `max_shift` pixels, zeros moving in, and half of them
    mirrored.
    """
    rows, height, width = len(x), *x.shape[2:]
    padded = functional.pad(x, (max_shift,) * 4)
    down, right = torch.randint(0, 2 * max_shift + 1, (2, rows, 1), generator=noise)
    columns = right + torch.arange(width)
    mirrored = torch.rand(rows, generator=noise) < 0.5
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    lines = down + torch.arange(height)
    # Advanced indices around the channel axis come out first, so that axis has to be moved back.
    return padded[torch.arange(rows)[:, None, None], :, lines[:, :, None], columns[:, None, :]].movedim(3, 1)


def robust_accuracy(net: nn.Module, split: Split, eps: float, seed: int, *, steps: int = 5) -> float:
    """The accuracy on a small split under a few steps of PGD in L∞, in eval mode."""
    x, y = _tensors(split, slice(None))
    noise = Generator().manual_seed(seed)
    with in_eval_mode(net):
        attacked = run_pgd(net, x, y, noise, eps=eps, steps=steps, size=2.5 * eps / steps)
        with torch.no_grad():
            return float((net(attacked).argmax(1) == y).float().mean())


class _Training:
    """The state of a training: everything random follows from the seed and the number of the epoch."""

    def __init__(self, plan: TrainingPlan, split: Split, checkpoint: Path) -> None:
        self.plan, self.data, self.checkpoint = plan, split, checkpoint
        self.split, self.validation = (
            _split_validation(split) if plan.recipe.validation_eps else (split, None)
        )
        self.spec = InputSpec(channels=1, height=split.images.shape[1], width=split.images.shape[2])
        self.net = _build_network(plan, self.spec)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=plan.rate)
        self.best_robustness = 0.0
        self.collapse = ""
        self.epoch = self._load_checkpoint() if checkpoint.exists() else 0
        self.per_epoch = math.ceil(len(self.split) / plan.batch)
        self.steps = plan.epochs * self.per_epoch

    def run(self, report: ReportProgress) -> None:
        while self.epoch < self.plan.epochs and not self.collapse:
            self._train_epoch(report)
            if self._check_collapse():
                self.epoch = self._load_checkpoint()
            else:
                self.epoch += 1
                self._save_checkpoint()

    def _train_epoch(self, report: ReportProgress) -> None:
        noise = Generator().manual_seed(self.plan.seed * 1000 + self.epoch)
        self.net.train()
        for step, (x, y) in enumerate(self._batches(noise), start=self.epoch * self.per_epoch):
            loss = self._train_step(x, y, one_cycle_rate(step, self.steps, self.plan.rate), noise)
            report(Progress(done=step + 1, total=self.steps), {"loss": float(loss)})

    def _check_collapse(self) -> bool:
        eps = self.plan.recipe.validation_eps
        if eps is None or self.validation is None:
            return False
        now = robust_accuracy(self.net, self.validation, eps, self.plan.seed)
        if now < self.best_robustness - MAX_ROBUSTNESS_DROP:
            self.collapse = (
                f"stopped after epoch {self.epoch}, since in the next one the share of {len(self.validation)}"
                f" held-out images that withstand PGD-5 fell from {self.best_robustness:.3f} to {now:.3f}"
            )
        self.best_robustness = max(self.best_robustness, now)
        return bool(self.collapse)

    def _batches(self, noise: Generator) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.split), generator=noise).numpy()
        for start in range(0, len(order), self.plan.batch):
            yield _tensors(self.split, order[start : start + self.plan.batch])

    def _train_step(self, x: Tensor, y: Tensor, rate: float, noise: Generator) -> Tensor:
        images = self.plan.recipe.batch(self.net, augment(x, noise), y, noise)
        loss = functional.cross_entropy(self.net(images), y)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        return loss.detach()

    def _save_checkpoint(self) -> None:
        tensors = {f"net.{name}": value.contiguous() for name, value in self.net.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{name}": value.contiguous() for name, value in state.items()}
        metadata = {"plan": self._key(), "epoch": str(self.epoch), "best": repr(self.best_robustness)}
        _write_atomically(self.checkpoint, safetensors.torch.save(tensors, metadata))

    def _load_checkpoint(self) -> int:
        with safetensors.safe_open(self.checkpoint, "pt") as file:
            metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata["plan"] != self._key():
            raise InvalidParameter(
                f"{self.checkpoint} belongs to another training; delete it to start this one"
            )
        self.net.load_state_dict(_select_prefix("net.", tensors))
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in _select_prefix("adam.", tensors).items():
            index, _, what = name.partition(".")
            state.setdefault(int(index), {})[what] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.best_robustness = float(metadata["best"])
        return int(metadata["epoch"])

    def _key(self) -> str:
        chosen = {"recipe": self.plan.recipe.name, **self.plan.recipe.model_dump()}
        return json.dumps({**asdict(self.plan), "recipe": chosen, "data": self.data.digest()})


def _split_validation(split: Split) -> tuple[Split, Split | None]:
    """The training images, and the last ones, held out for validation."""
    end = len(split) - min(MAX_VALIDATION_IMAGES, len(split) // 10)
    return Split(split.images[:end], split.labels[:end]), Split(split.images[end:], split.labels[end:])


def _build_network(plan: TrainingPlan, spec: InputSpec) -> NormalizedNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        net = find_architecture(plan.architecture).build(spec, len(CLASSES))
    return NormalizedNetwork(net.to(memory_format=torch.channels_last), MEAN, STD)  # type: ignore[call-overload]


def _tensors(split: Split, index: Any) -> tuple[Tensor, Tensor]:
    x = torch.from_numpy(split.images[index].astype(np.float32) / 255)[:, None]
    return x, torch.from_numpy(split.labels[index].astype(np.int64))


def _select_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _write_model(run: _Training, name: str, out: Path, test: Split, accuracy: float) -> Manifest:
    net = {key: value.contiguous() for key, value in run.net.net.state_dict().items()}
    data = safetensors.torch.save(net)
    manifest = Manifest(
        id=name,
        digest=f"sha256:{hashlib.sha256(data).hexdigest()}",
        architecture=run.plan.architecture,
        weights=Weights(file=f"{name}.safetensors"),
        input=run.spec,
        mean=(MEAN,),
        std=(STD,),
        classes=CLASSES,
        parameters=sum(value.numel() for value in net.values()),
        licence="Apache-2.0 (weights); MIT (the data they were trained on)",
        provenance=_provenance(run),
        accuracy=(Accuracy(data=f"Fashion-MNIST test, {len(test):,} images", value=accuracy, measured=True),),
    )
    _write_atomically(out / manifest.weights.file, data)
    _write_atomically(out / f"{name}.json", (manifest.model_dump_json(indent=2) + "\n").encode())
    return manifest


def _provenance(run: _Training) -> str:
    plan, chosen = run.plan, run.plan.recipe
    flags = "".join(f" --{name.replace('_', '-')} {value}" for name, value in chosen.model_dump().items())
    ending = f" {run.collapse[0].upper()}{run.collapse[1:]}." if run.collapse else ""
    return (
        f"touchstone train --recipe {chosen.name}{flags}: {chosen.text},"
        f" shifted and mirrored at random before;"
        f" {plan.epochs} epochs of {len(run.split):,} Fashion-MNIST images ({run.data.digest()}), batches of "
        f"{plan.batch}, Adam, one cycle up to {plan.rate:g}, seed {plan.seed}; torch {torch.__version__}, "
        f"numpy {np.__version__}, {torch.get_num_threads()} threads.{ending}"
    )


def _write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that no reader sees it half-written."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_bytes(data)
    draft.replace(path)
