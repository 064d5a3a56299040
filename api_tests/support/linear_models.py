"""Linear models, whose distance to the next class is known exactly in every norm."""

from __future__ import annotations

import torch
from torch import Tensor, nn

DUAL_NORMS = {"linf": 1.0, "l2": 2.0, "l1": float("inf")}


def linear_model(*, classes: int = 2, shape: tuple[int, int, int] = (3, 8, 8), seed: int = 0) -> nn.Module:
    """Logits W·x + b with the classes balanced around mid-gray."""
    draw = torch.Generator().manual_seed(seed)
    layer = nn.Linear(torch.Size(shape).numel(), classes)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=draw))
        layer.bias.copy_(-0.5 * layer.weight.sum(1))
    return nn.Sequential(nn.Flatten(), layer)


def gray_images(count: int, *, shape: tuple[int, int, int] = (3, 8, 8), seed: int = 1) -> Tensor:
    """Images on the 8-bit lattice, far enough from black and white that the box does not matter."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(100, 156, (count, *shape), generator=draw) / 255


def exact_distances(model: nn.Module, x: Tensor, norm: str) -> Tensor:
    """min_k (z_y - z_k) / ‖w_y - w_k‖_q per image, q the dual norm.

    The box is not taken into account.
    """
    weight = model[1].weight.double()
    z = model.double()(x.double())
    model.float()
    labels = z.argmax(1)
    rows = []
    for i in range(len(x)):
        y = int(labels[i])
        others = [k for k in range(z.shape[1]) if k != y]
        gaps = [
            (z[i, y] - z[i, k]) / torch.linalg.vector_norm(weight[y] - weight[k], ord=DUAL_NORMS[norm])
            for k in others
        ]
        rows.append(min(gaps))
    return torch.stack(rows).detach()
