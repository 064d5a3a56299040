"""From a manifest to a network for inference: verified, frozen and optimized."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from touchstone.errors import InvalidModel, ModelUnusable
from touchstone.models import onnx, zoo
from touchstone.models.architectures import find_architecture
from touchstone.models.manifest import ONNX, Gradients, Manifest
from touchstone.models.onnx.builder import ImportedModel
from touchstone.models.onnx.image_input import fit_input
from touchstone.models.output_activation import ActivationStep
from touchstone.models.output_end import add_output_end
from touchstone.models.state_dicts import MisfitError
from touchstone.models.store import ZOO, ModelStore


def load_module(manifest: Manifest, store: ModelStore = ZOO) -> nn.Module:
    """The network of a manifest, frozen and in eval mode: normalized images (B, C, H, W) in, logits (B, K)
    out.

    Its logits and input gradients are those of `load_plain` up to rounding. Raises ModelUnusable where the
    file is missing, does not have the manifest's digest, or does not fit the architecture; for a registered
    file also InvalidModel and UnsupportedOperator.
    """
    return build_module(manifest, store.weights(manifest))


def build_module(manifest: Manifest, data: bytes) -> nn.Module:
    """The same from the bytes of its file."""
    net = build_network(manifest, data).module
    net = add_output_end(net, manifest.output_activation, single=manifest.single_output)
    return net.eval().requires_grad_(False)


class BuiltNetwork(NamedTuple):
    """A network as its file has it, but for the `activation` that was removed from its end."""

    module: nn.Module
    activation: tuple[ActivationStep, ...] = ()
    single: bool = False  # it has one output, for the second of two classes
    gradients: Gradients = "exact"


def build_network(manifest: Manifest, data: bytes) -> BuiltNetwork:
    """The network of a file, whose answers may not be logits yet; raises as `load_module` does."""
    if manifest.architecture == ONNX:
        found = import_onnx(manifest, data)
        kind: Gradients = "straight-through" if manifest.input.straight_through else "none"
        gradients: Gradients = kind if found.quantized else "exact"
        return BuiltNetwork(found.module, found.activation, found.classes == 1, gradients)
    plain = _load_weights(manifest, data)
    with torch.no_grad():
        net = find_architecture(manifest.architecture).freeze(plain)
    return BuiltNetwork(nn.Sequential(ChannelsLast(), net) if manifest.input.layout == "nhwc" else net)


def load_plain(manifest: Manifest, store: ModelStore = ZOO) -> nn.Module:
    """The network as it was trained: the reference for `load_module`."""
    return _load_weights(manifest, store.weights(manifest))


def _load_weights(manifest: Manifest, data: bytes) -> nn.Module:
    architecture = find_architecture(manifest.architecture, manifest.config)
    tensors = _read_tensors(manifest, data)
    try:
        net = architecture.load(partial(architecture.build, manifest.input, len(manifest.classes)), tensors)
    except MisfitError as error:
        raise ModelUnusable(
            f"{manifest.id}: the weights do not fit {manifest.architecture} with {len(manifest.classes):,} "
            f"classes: {error}"[:1000]
        ) from None
    return net.eval().requires_grad_(False)


def import_onnx(manifest: Manifest, data: bytes) -> ImportedModel:
    """The network in an ONNX file, once its input and output are checked against the manifest."""
    graph = onnx.read(data, output=manifest.output, classes=len(manifest.classes))
    passes = manifest.input.straight_through
    net = onnx.build(fit_input(graph, manifest), randomized=manifest.randomized, straight_through=passes)
    if passes and not net.quantized:
        raise InvalidModel(
            "input.straight_through: the network is not quantized; leave this out",
            field="input.straight_through",
        )
    if net.classes not in _possible_outputs(len(manifest.classes)):
        raise InvalidModel(
            f"classes: the network answers {net.classes} numbers, but {len(manifest.classes)} classes are "
            "named",
            field="classes",
        )
    return net


def _possible_outputs(classes: int) -> tuple[int, ...]:
    """How many numbers a network may answer: one for each class, or one for the second of two."""
    return (1, 2) if classes == 2 else (classes,)


def _read_tensors(manifest: Manifest, data: bytes) -> dict[str, Tensor]:
    if manifest.weights.file.endswith(".safetensors"):
        try:
            tensors = safetensors.torch.load(data)
        except SafetensorError as error:
            raise ModelUnusable(f"{manifest.id}: {manifest.weights.file} is damaged: {error}") from None
        return {name: one.float() if one.is_floating_point() else one for name, one in tensors.items()}
    # Pickles only from packages that the zoo's manifests name by digest, and even these with weights_only.
    if manifest.weights.package is None or manifest not in zoo.manifests().values():
        raise ModelUnusable(
            f"{manifest.id}: weights must be safetensors, not {Path(manifest.weights.file).suffix or 'this'}"
        )
    return dict(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True))


class ChannelsLast(nn.Module):
    """Converts images for a network that takes the channels last."""

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) as (B, H, W, C)."""
        return x.permute(0, 2, 3, 1)
