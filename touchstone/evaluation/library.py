"""The methods without a server: for notebooks, scripts and tests."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from touchstone.engine.certification.sampling import CertificateCase
from touchstone.engine.defences import straight_through
from touchstone.engine.device import choose_device, tune_allocator
from touchstone.engine.goals import Goal
from touchstone.engine.oracles.oracle import Knowledge, TorchOracle
from touchstone.engine.oracles.preprocessing import Preprocessing, per_channel
from touchstone.engine.oracles.probe import load_oracle
from touchstone.engine.quantization import from_pixels
from touchstone.engine.queries import PlanOf
from touchstone.engine.scheduler.batcher import Batcher
from touchstone.engine.scheduler.task import QueryCount, Task
from touchstone.errors import InvalidParameter, UnknownLabel, UnknownModel
from touchstone.evaluation.library_inputs import (
    Images,
    Labels,
    label_indices,
    noise_keys,
    parse_seed,
    to_stacks,
)
from touchstone.evaluation.row_verdicts import RowVerdicts, evaluate_rows
from touchstone.evaluation.verdict import build_case, logits_of
from touchstone.methods import Attack, Certificate, find
from touchstone.methods.compatibility import check_target
from touchstone.models.manifest import Manifest
from touchstone.models.norm_gradients import correct_norm_gradients
from touchstone.models.store import ZOO, ModelStore, SingleFileStore
from touchstone.registration.examination import complete_manifest
from touchstone.registration.model_files import find_beside, open_model
from touchstone.registration.published.beside import default_id, is_configured, read_beside, read_object
from touchstone.registration.request import Registration, describe_model
from touchstone.training.datasets import fashion_mnist_sample


@dataclass(frozen=True)
class Model:
    """An oracle with the names of its classes."""

    oracle: TorchOracle
    classes: tuple[str, ...] = ()
    manifest: Manifest | None = None

    @property
    def name(self) -> str:
        """The model's name in messages."""
        return self.manifest.id if self.manifest else "the model"


@dataclass(frozen=True)
class AttackedImages:
    """What `attack` returns, one entry per image."""

    images: Tensor | list[Tensor]  # (N, C, H, W), or a list of (C, H, W) where the sizes differ
    success: Tensor  # (N,) bool: `images` meet the goal within the radius
    distance: Tensor  # (N,) float64, in the attack's norm
    queries: QueryCount
    found_by: tuple[str | None, ...]  # the part of the attack that met the goal, where it has parts
    diagnostics: tuple[str, ...] = ()  # signs seen at any of the images; docs/attacks.md explains them


def load(
    name: str | Path, *, manifest: Mapping[str, Any] | str | Path | None = None, device: str = "auto"
) -> Model:
    """A model of the zoo by its id, or your own ONNX or safetensors file with its `manifest`: what
    `POST /v1/models` takes, as a mapping or as the path of a JSON file. Weights in a second file, such as
    `m.onnx.data`, and configurations are found beside the first; with a `config.json` there no manifest is
    needed.

    Raises UnknownModel, or InvalidModel, UnsupportedOperator and InvalidParameter of a file.
    """
    if manifest is None and not is_configured(Path(name)):
        model_manifest, store = _find_in_zoo(name), ZOO
    else:
        model_manifest, store = _read_own_model(Path(name), {} if manifest is None else manifest)
    oracle, _ = load_oracle(model_manifest, choose_device(device), store)
    return Model(oracle, model_manifest.classes, model_manifest)


def _find_in_zoo(name: str | Path) -> Manifest:
    try:
        return ZOO.manifest(str(name))
    except UnknownModel:
        if Path(name).is_file():
            raise InvalidParameter(
                f"manifest: {name} does not say everything; add manifest= as POST /v1/models takes it",
                field="manifest",
            ) from None
        raise


def _read_own_model(path: Path, declared: Mapping[str, Any] | str | Path) -> tuple[Manifest, ModelStore]:
    """The completed manifest of a file, and a store with this one model."""
    fields = declared if isinstance(declared, Mapping) else read_object(Path(declared), "manifest")
    registration = Registration.parse({"id": default_id(path), **read_beside(path, fields)})
    with open_model(path, find_beside(path), limit=sys.maxsize) as model:
        data = b"".join(model.joined.chunks())
    manifest = complete_manifest(describe_model(registration, data, limit=sys.maxsize), data)
    return manifest, SingleFileStore(manifest, data)


def samples(name: str = "fashion-mnist") -> Tensor:
    """Sample images that come with the package: 256 of Fashion-MNIST's test set.

    (256, 1, 28, 28) in [0,1]; the n-th is of class n % 10.
    """
    if name != "fashion-mnist":
        raise InvalidParameter(f"there are samples of fashion-mnist, not of {name!r}", field="name")
    return from_pixels(torch.from_numpy(np.array(fashion_mnist_sample().images))[:, None])


def wrap(
    module: nn.Module,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    classes: Sequence[str] = (),
    device: str = "auto",
    knowledge: Knowledge = "white-box",
) -> Model:
    """Any module that maps normalized images (N, C, H, W) to logits (N, K); a frozen copy in eval mode is
    used.
    """
    if not isinstance(module, nn.Module):
        raise InvalidParameter(
            f"module: expected a torch.nn.Module, not {type(module).__name__}", field="module"
        )
    where = choose_device(device)
    frozen = copy.deepcopy(module).to(where).eval().requires_grad_(requires_grad=False)
    if (mean is None) != (std is None):
        raise InvalidParameter("mean and std must be given together, or not at all", field="std")
    preprocessing = Preprocessing(
        None,
        per_channel(None if mean is None else tuple(mean), where),
        per_channel(None if std is None else tuple(std), where),
    )
    oracle = TorchOracle(correct_norm_gradients(frozen), preprocessing, where, knowledge)
    return Model(oracle, tuple(classes))


def attack(
    model: Model,
    images: Images,
    labels: Labels = None,
    method: str = "pgd",
    *,
    targets: Labels = None,
    seed: int | Sequence[int] = 0,
    quantize: bool = True,
    surrogates: Sequence[Model] = (),
    **parameters: Any,
) -> AttackedImages:
    """Attack N images in [0,1] and return the best found of each.

    A tensor at the network's own size is used as it is; other images are resized and cropped as the model's
    manifest says. `labels` (indices or names) default to the model's own predictions; `targets` make the
    attack targeted. `seed` is one number, or one per image; an image's result depends on its seed, not on its
    neighbors. `quantize=False` works on real numbers instead of 8-bit levels. `eps` may be one number per
    image. `surrogates` are the models that a transfer attack crafts on. Raises InvalidParameter,
    UnknownLabel, NonFiniteOutput.
    """
    tune_allocator()
    oracle = _oracle_for(model, images)
    stacks = to_stacks(images, oracle.device, resized=oracle.preprocessing.spec is not None)
    count = sum(map(len, stacks))
    chosen, radii = _parse_attack(method, parameters, count)
    keys, aims = noise_keys(seed, count), _parse_aims(labels, targets, model, count)
    others = tuple(_oracle_for(one, images) for one in surrogates)
    plans = []
    for start, x0 in zip(_first_rows(stacks), stacks, strict=True):
        rows = slice(start, start + len(x0))
        plan = _attack_stack(
            chosen,
            x0,
            keys[rows],
            radii and radii[rows],
            aims[rows],
            quantize=quantize,
            surrogates=others,
            manifest=model.manifest,
        )
        plans.append(straight_through(plan, chosen.defence))
    ended, queries = run_plans(plans, oracle, [keys[start] for start in _first_rows(stacks)])
    return _join_stacks(ended, queries)


def _join_stacks(stacks: Sequence[RowVerdicts], queries: QueryCount) -> AttackedImages:
    found = [stack.judged.images.cpu() for stack in stacks]
    return AttackedImages(
        torch.cat(found) if len({x.shape[1:] for x in found}) == 1 else [x[0] for x in found],
        torch.cat([stack.judged.success.cpu() for stack in stacks]),
        torch.cat([stack.judged.distance.cpu() for stack in stacks]),
        queries,
        tuple(part for stack in stacks for part in stack.parts),
        tuple(sorted({code for stack in stacks for code in stack.diagnostics})),
    )


@dataclass(frozen=True)
class CertifiedImages:
    """What `certify` returns, one entry per image; `results` holds the methods' own fields."""

    radius: Tensor  # (N,) float64; 0 where it abstained
    label: Tensor  # (N,) the class that the pilot chose
    abstained: Tensor  # (N,) bool
    n_used: Tensor  # (N,) samples counted
    results: list[dict[str, Any]]


def certify(
    model: Model,
    images: Images,
    method: str = "smoothing",
    *,
    seed: int = 0,
    **parameters: Any,
) -> CertifiedImages:
    """Certify N images in [0,1]: how far each can move without the (smoothed) answer changing.

    Noise is added at the size the network takes. Raises InvalidParameter, BatchDependent, NonFiniteOutput.
    """
    tune_allocator()
    chosen = find(method, "certificate").parse(parameters)
    if not isinstance(chosen, Certificate):
        raise InvalidParameter(f"{method} is not a certificate", field="method")
    oracle = _oracle_for(model, images)
    stacks = to_stacks(images, oracle.device, resized=oracle.preprocessing.spec is not None)
    resized = [oracle.preprocessing.resize_files(x) for stack in stacks for x in stack[:, None]]
    counts, _ = run_plans([chosen.run(CertificateCase(image, parse_seed(seed))) for image in resized], oracle)
    results = [chosen.result(one) for one in counts]
    return CertifiedImages(
        torch.tensor([result["radius"] for result in results], dtype=torch.float64),
        torch.tensor([one.label for one in counts]),
        torch.tensor([result["abstained"] for result in results]),
        torch.tensor([one.n for one in counts]),
        results,
    )


def run_plans(
    plans: Sequence[PlanOf[Any]], oracle: TorchOracle, seeds: Sequence[tuple[int, ...]] = ()
) -> tuple[list[Any], QueryCount]:
    """Run plans to their ends in this thread, sharing passes; the first failure is raised.

    `seeds`, one for each plan, are those of a model that answers at random.
    """
    batcher = Batcher()
    ended: dict[int, Any] = {}
    failed: list[BaseException] = []
    seeds = seeds or [(0, number) for number in range(len(plans))]
    tasks = [Task(plan, oracle, noise_key=seed) for plan, seed in zip(plans, seeds, strict=True)]
    for position, task in enumerate(tasks):

        def settle(result: Any, error: BaseException | None, position: int = position) -> None:
            ended[position] = result
            failed.extend([] if error is None else [error])

        task.on_done = settle
        batcher.add(task)
    while len(batcher) and not failed:
        batcher.step()
    if failed:
        raise failed[0]
    queries = QueryCount(
        sum(task.queries.forward for task in tasks),
        sum(task.queries.backward for task in tasks),
        sum(task.queries.surrogate for task in tasks),
    )
    return [ended[position] for position in range(len(tasks))], queries


def _attack_stack(
    method: Attack,
    x0: Tensor,
    keys: Sequence[tuple[int, int]],
    radii: Sequence[float] | None,
    aims: _Aims,
    *,
    quantize: bool,
    surrogates: tuple[TorchOracle, ...],
    manifest: Manifest | None,
) -> PlanOf[RowVerdicts]:
    clean = yield from logits_of(x0, as_files=quantize)
    goal = aims.goal(clean)
    case = build_case(
        method, x0, goal, keys, radii=radii, quantize=quantize, surrogates=surrogates, manifest=manifest
    )
    return (yield from evaluate_rows(method, case, clean))


@dataclass(frozen=True)
class _Aims:
    """The labels to leave or the targets to reach, one for each image; None for the model's own answers."""

    indices: Tensor | None  # (N,)
    targeted: bool

    def __getitem__(self, rows: slice) -> _Aims:
        return self if self.indices is None else replace(self, indices=self.indices[rows])

    def goal(self, clean: Tensor) -> Goal:
        """The goal of images with these logits (N, K). Raises UnknownLabel."""
        if self.indices is None:
            return Goal.of(clean.argmax(1), targeted=False)
        if not 0 <= int(self.indices.min()) <= int(self.indices.max()) < clean.shape[1]:
            field, last = "targets" if self.targeted else "labels", clean.shape[1] - 1
            raise UnknownLabel(
                f"{field}: the model has classes 0 to {last}, not all of {self.indices.tolist()}", field=field
            )
        return Goal.of(self.indices.to(clean.device), targeted=self.targeted)


def _parse_aims(labels: Labels, targets: Labels, model: Model, count: int) -> _Aims:
    """Raises InvalidParameter where a target is the label of its image."""
    own = label_indices(labels, model.classes, count, model=model.name)
    aims = label_indices(targets, model.classes, count, model=model.name, field="targets")
    if aims is None:
        return _Aims(own, targeted=False)
    if own is not None and bool((own == aims).any()):
        row = int((own == aims).nonzero()[0])
        check_target(int(own[row]), int(aims[row]), field="targets", of=f" of image {row}")
    return _Aims(aims, targeted=True)


def _parse_attack(name: str, parameters: dict[str, Any], count: int) -> tuple[Attack, list[float] | None]:
    """The parsed attack, and each row's radius where `eps` has one for each."""
    eps, radii = parameters.get("eps"), None
    if eps is None or isinstance(eps, str | int | float):
        method = find(name, "attack").parse(parameters)
    else:
        parsed = [find(name, "attack").parse({**parameters, "eps": _to_number(one)}) for one in eps]
        method, radii = parsed[0], [getattr(one, "eps", math.inf) for one in parsed]
    if not isinstance(method, Attack) or (radii and len(radii) != count):
        raise InvalidParameter(f"eps: {len(radii or [])} radii for {count} images", field="eps")
    return method, radii


def _oracle_for(model: Model, images: Images) -> TorchOracle:
    """The model's oracle; for a tensor at the network's own size one without resize.

    Such a tensor was resized and cropped before; PIL images always are.
    """
    if not isinstance(model, Model):
        raise InvalidParameter(
            f"model: expected what touchstone.load or touchstone.wrap returns, not {type(model).__name__}",
            field="model",
        )
    spec = model.oracle.preprocessing.spec
    if spec is None or not isinstance(images, Tensor) or images.shape[-2:] != (spec.height, spec.width):
        return model.oracle
    as_it_is = spec.model_copy(update={"resize": None})
    return replace(model.oracle, preprocessing=replace(model.oracle.preprocessing, spec=as_it_is))


def _to_number(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _first_rows(stacks: Sequence[Tensor]) -> list[int]:
    ends = np.cumsum([len(stack) for stack in stacks]).tolist()
    return [0, *ends[:-1]]
