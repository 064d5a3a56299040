"""The methods without a server: for notebooks, scripts and tests."""

from __future__ import annotations

import copy
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
from touchstone.engine.noise import Noise
from touchstone.engine.norms import NORMS
from touchstone.engine.oracles.oracle import Knowledge, TorchOracle
from touchstone.engine.oracles.preprocessing import Preprocessing, per_channel
from touchstone.engine.oracles.probe import load_oracle
from touchstone.engine.quantization import LEVELS, from_pixels
from touchstone.engine.queries import PlanOf
from touchstone.engine.scheduler.batcher import Batcher
from touchstone.engine.scheduler.task import QueryCount, Task
from touchstone.engine.threat import Case, Threat
from touchstone.errors import InvalidParameter, UnknownLabel, UnknownModel
from touchstone.evaluation.attempts import attack_rows
from touchstone.evaluation.library_inputs import (
    Images,
    Labels,
    label_indices,
    noise_keys,
    parse_seed,
    to_stacks,
)
from touchstone.evaluation.verdict import logits_of, part_names
from touchstone.methods import Attack, Certificate, find
from touchstone.models.manifest import Manifest
from touchstone.models.store import ZOO, ModelStore, SingleFileStore
from touchstone.registration.examination import complete_manifest
from touchstone.registration.model_files import find_beside, open_model
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
    success: Tensor  # (N,) bool: the goal is met by `images`
    distance: Tensor  # (N,) float64, in the attack's norm
    queries: QueryCount
    found_by: tuple[str | None, ...]  # the part of the attack that met the goal, where it has parts


def load(
    name: str | Path, *, manifest: Mapping[str, Any] | str | Path | None = None, device: str = "auto"
) -> Model:
    """A model of the zoo by its id, or your own ONNX or safetensors file with its `manifest`: what
    `POST /v1/models` takes, as a mapping or as the path of a JSON file. Weights in a second file, such as
    `m.onnx.data`, are found beside the first.

    Raises UnknownModel, or InvalidModel, UnsupportedOperator and InvalidParameter of a file.
    """
    if manifest is None:
        model_manifest, store = _find_in_zoo(name), ZOO
    else:
        model_manifest, store = _read_own_model(Path(name), manifest)
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
    text = declared if isinstance(declared, Mapping) else Path(declared).read_bytes()
    with open_model(path, find_beside(path), limit=sys.maxsize) as model:
        data = b"".join(model.joined.chunks())
    manifest = complete_manifest(describe_model(Registration.parse(text), data, limit=sys.maxsize), data)
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
    return Model(TorchOracle(frozen, preprocessing, where, knowledge), tuple(classes))


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
    chosen, eps = _parse_attack(method, parameters, count)
    keys = noise_keys(seed, count)
    given, field = (labels, "labels") if targets is None else (targets, "targets")
    aims = label_indices(given, model.classes, count, model=model.name, field=field)
    plans = []
    for start, x0 in zip(_first_rows(stacks), stacks, strict=True):
        rows = slice(start, start + len(x0))
        threat = Threat(x0, eps[rows].to(x0.device), NORMS[getattr(chosen, "norm", chosen.info.norms[0])])
        noise = Noise.from_seeds(keys[rows], method)
        aim = None if aims is None else aims[rows].to(x0.device)
        others = tuple(_oracle_for(one, images) for one in surrogates)
        whole = _attack_stack(
            chosen, threat, noise, aim, targeted=targets is not None, quantize=quantize, surrogates=others
        )
        plans.append(straight_through(whole, chosen.defence))
    ended, queries = run_plans(plans, oracle)
    found = [x for x, *_ in ended]
    return AttackedImages(
        torch.cat(found) if len({x.shape[1:] for x in found}) == 1 else [x[0] for x in found],
        torch.cat([success for _, success, *_ in ended]),
        torch.cat([distance for _, _, distance, _ in ended]),
        queries,
        tuple(part for *_, parts in ended for part in parts),
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


def run_plans(plans: Sequence[PlanOf[Any]], oracle: TorchOracle) -> tuple[list[Any], QueryCount]:
    """Run plans to their ends in this thread, sharing passes; the first failure is raised."""
    batcher = Batcher()
    ended: dict[int, Any] = {}
    failed: list[BaseException] = []
    tasks = [Task(plan, oracle) for plan in plans]
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
    threat: Threat,
    noise: Noise,
    aim: Tensor | None,
    *,
    targeted: bool,
    quantize: bool,
    surrogates: tuple[TorchOracle, ...],
) -> PlanOf[tuple[Tensor, Tensor, Tensor, list[str | None]]]:
    """Images, success, distance and the part that found each, of one stack of images."""
    clean = yield from logits_of(threat.x0, as_files=quantize)
    if aim is not None and not 0 <= int(aim.min()) <= int(aim.max()) < clean.shape[1]:
        field, last = "targets" if targeted else "labels", clean.shape[1] - 1
        raise UnknownLabel(
            f"{field}: the model has classes 0 to {last}, not all of {aim.tolist()}", field=field
        )
    goal = Goal.of(clean.argmax(1) if aim is None else aim, targeted=targeted)
    case = Case(threat, goal, noise, quantize, surrogates)
    sought = yield from attack_rows(method, case, clean)
    success = goal.is_met((yield from logits_of(sought.rounded, as_files=True))) if quantize else sought.met
    moved = sought.rounded.double() - threat.x0.double()
    distance = threat.norm.size((moved * LEVELS).round() / LEVELS if quantize else moved)
    return sought.rounded.cpu(), success.cpu(), distance.cpu(), part_names(method, sought.part)


def _parse_attack(name: str, parameters: dict[str, Any], count: int) -> tuple[Attack, Tensor]:
    """The parsed attack and each row's radius, which is infinite for an attack without one."""
    eps = parameters.get("eps")
    if eps is None or isinstance(eps, str | int | float):
        method = find(name, "attack").parse(parameters)
        radii = [getattr(method, "eps", float("inf"))] * count
    else:
        parsed = [find(name, "attack").parse({**parameters, "eps": _to_number(one)}) for one in eps]
        method, radii = parsed[0], [getattr(one, "eps", float("inf")) for one in parsed]
    if not isinstance(method, Attack) or len(radii) != count:
        raise InvalidParameter(f"eps: {len(radii)} radii for {count} images", field="eps")
    return method, torch.tensor(radii)


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
