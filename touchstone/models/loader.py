"""From a manifest to a network for inference: verified, frozen and optimized."""

from __future__ import annotations

import io
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from touchstone.errors import InvalidModel, ModelUnusable
from touchstone.models import onnx, zoo
from touchstone.models.architectures import find_architecture
from touchstone.models.manifest import ONNX, Manifest
from touchstone.models.onnx.builder import ImportedModel
from touchstone.models.onnx.image_input import fit_input
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
    net: nn.Module
    if manifest.architecture == ONNX:
        net = import_onnx(manifest, data).module
    else:
        plain = _load_weights(manifest, data)
        with torch.no_grad():
            net = find_architecture(manifest.architecture).freeze(plain)
        net = nn.Sequential(ChannelsLast(), net) if manifest.input.layout == "nhwc" else net
    net = nn.Sequential(net, Logarithm()) if manifest.softmax == "inverted" else net
    return net.eval().requires_grad_(False)


def load_plain(manifest: Manifest, store: ModelStore = ZOO) -> nn.Module:
    """The network as it was trained: the reference for `load_module`."""
    return _load_weights(manifest, store.weights(manifest))


def _load_weights(manifest: Manifest, data: bytes) -> nn.Module:
    with torch.device("meta"):  # no weights are initialized only to be replaced
        net = find_architecture(manifest.architecture).build(manifest.input, len(manifest.classes))
    try:
        net.load_state_dict(_read_tensors(manifest, data), assign=True)
    except RuntimeError as error:
        raise ModelUnusable(
            f"{manifest.id}: the weights do not fit {manifest.architecture}: {error}"[:500]
        ) from None
    return net.eval().requires_grad_(False)


def import_onnx(manifest: Manifest, data: bytes) -> ImportedModel:
    """The network in an ONNX file, once its input and output are checked against the manifest."""
    graph = fit_input(onnx.read(data), manifest)
    net = onnx.build(graph)
    if net.classes != len(manifest.classes):
        raise InvalidModel(
            f"classes: the network answers {net.classes} numbers, but {len(manifest.classes)} classes are "
            "named",
            field="classes",
        )
    return net


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


class Logarithm(nn.Module):
    """Turns probabilities into logits, for a network whose Softmax cannot be identified and removed."""

    def forward(self, probabilities: Tensor) -> Tensor:
        """Logarithms (B, K); probabilities are clamped to the smallest normal number of their type."""
        return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()
