"""From a card to a network that can be asked: verified, frozen, and in the form that answers fastest."""

from __future__ import annotations

import io
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from touchstone.errors import ModelUnusable
from touchstone.models import zoo
from touchstone.models.architectures import architecture
from touchstone.models.manifest import Manifest


def load_module(card: Manifest, *, beside: Path = zoo.CARDS) -> nn.Module:
    """The network of a card, frozen and in eval mode: normalised images (B, C, H, W) in, logits (B, K) out.

    Its logits and input gradients are those of `load_plain` up to rounding. Raises ModelUnusable where the
    file is missing, is not the one that the card's digest names, or does not fit the architecture.
    """
    plain = load_plain(card, beside=beside)
    with torch.no_grad():
        frozen = architecture(card.architecture).freeze(plain)
    return frozen.eval().requires_grad_(False)


def load_plain(card: Manifest, *, beside: Path = zoo.CARDS) -> nn.Module:
    """The network as it was trained: the reference for `load_module`, and what training goes on from."""
    with torch.device("meta"):  # no weights are drawn only to be replaced
        net = architecture(card.architecture).build(card.input, len(card.classes))
    try:
        net.load_state_dict(_tensors(card, zoo.read_weights(card, beside=beside)), assign=True)
    except RuntimeError as error:
        raise ModelUnusable(f"{card.id}: the weights do not fit {card.architecture}: {error}"[:500]) from None
    return net.eval().requires_grad_(False)


def _tensors(card: Manifest, data: bytes) -> dict[str, Tensor]:
    if card.weights.file.endswith(".safetensors"):
        try:
            return safetensors.torch.load(data)
        except SafetensorError as error:
            raise ModelUnusable(f"{card.id}: {card.weights.file} is damaged: {error}") from None
    # Pickles only from packages that our own cards name by digest, and even those without their code.
    if card.weights.package is None or card not in zoo.manifests().values():
        raise ModelUnusable(
            f"{card.id}: weights must be safetensors, not {Path(card.weights.file).suffix or 'this'}"
        )
    tensors: dict[str, Tensor] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return tensors
