"""PGD in L∞ as each library does it: same start, steps and step size; every call returns the adversarial
images.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

Attack = Callable[[Tensor, Tensor], Tensor]


def make_foolbox(net: nn.Module, eps: float, steps: int) -> Attack:
    from foolbox import PyTorchModel
    from foolbox.attacks import LinfPGD

    model = PyTorchModel(net, bounds=(0, 1), device=next(net.parameters()).device)
    attack = LinfPGD(steps=steps, abs_stepsize=2.5 * eps / steps)
    return lambda x, y: attack(model, x, y, epsilons=eps)[1]


def make_torchattacks(net: nn.Module, eps: float, steps: int) -> Attack:
    import torchattacks

    return torchattacks.PGD(net, eps=eps, alpha=2.5 * eps / steps, steps=steps)


def make_art(net: nn.Module, eps: float, steps: int) -> Attack:
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    def attack(x: Tensor, y: Tensor) -> Tensor:
        classifier = PyTorchClassifier(
            net, nn.CrossEntropyLoss(), tuple(x.shape[1:]), 1000, clip_values=(0, 1), device_type="cpu"
        )
        pgd = ProjectedGradientDescentPyTorch(
            classifier, eps=eps, eps_step=2.5 * eps / steps, max_iter=steps, num_random_init=1,
            batch_size=len(x), verbose=False,
        )  # fmt: skip
        return torch.from_numpy(pgd.generate(x.numpy(), np.asarray(y)))

    return attack


def make_bare_loop(net: nn.Module, eps: float, steps: int) -> Attack:
    """The limit: nothing but the steps, written by hand."""
    size = 2.5 * eps / steps

    def attack(x0: Tensor, y: Tensor) -> Tensor:
        x = (x0 + eps * (2 * torch.rand_like(x0) - 1)).clamp(0, 1)
        for _ in range(steps):
            x.requires_grad_()
            loss = functional.cross_entropy(net(x), y, reduction="sum")
            (grad,) = torch.autograd.grad(loss, x)
            x = x.detach() + size * grad.sign()
            x = torch.minimum(torch.maximum(x, x0 - eps), x0 + eps).clamp(0, 1)
        return x

    return attack


PEERS: dict[str, Callable[[nn.Module, float, int], Attack]] = {
    "foolbox": make_foolbox,
    "torchattacks": make_torchattacks,
    "art": make_art,
}

warnings.filterwarnings("ignore")
