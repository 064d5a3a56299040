"""Training recipes: how a clean batch becomes a training batch, one small declaration each.

A recipe is a frozen pydantic model, as an attack is: its fields are the parameters, with their bounds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Generator, Tensor, nn
from torch.nn import functional

from touchstone.engine import Linf, Noise, Threat
from touchstone.errors import InvalidParameter
from touchstone.fields import Count, Distance, Ratio
from touchstone.methods import invalid_parameter


class Recipe(BaseModel):
    """What distinguishes one way of training from another; `training.train` does everything else."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: ClassVar[str]

    @property
    def text(self) -> str:
        """How the images were changed, for the manifest."""
        raise NotImplementedError

    @property
    def suffix(self) -> str:
        """The end of the id of a model trained this way."""
        return f"-{self.name}"

    @property
    def validation_eps(self) -> Distance | None:
        """The radius at which held-out images are attacked after each epoch; None for no validation.

        Training against one-step attacks can collapse within an epoch to a network that is not robust against
        any other attack.
        """
        return None

    def batch(self, net: nn.Module, x: Tensor, y: Tensor, noise: Generator) -> Tensor:
        """The images to train on in place of `x`.

        `net` maps images (B, C, H, W) in [0,1] to logits and is in training mode, and is left so; all
        randomness comes from `noise`.
        """
        raise NotImplementedError


class Standard(Recipe):
    """Training on the images as they are."""

    name = "standard"

    @property
    def text(self) -> str:
        """No change."""
        return "clean images"

    @property
    def suffix(self) -> str:
        """None: it is the plain model."""
        return ""

    def batch(self, net: nn.Module, x: Tensor, y: Tensor, noise: Generator) -> Tensor:  # noqa: ARG002
        """The images themselves."""
        return x


class Gaussian(Recipe):
    """Training under Gaussian noise, for the smoothed classifier of the same noise (Cohen et al. 2019)."""

    name = "noise"

    sigma: Ratio = Field(0.25, gt=0, le=10, description="Standard deviation of the noise, in the box [0,1].")

    @property
    def text(self) -> str:
        """The noise and where it is added."""
        return f"images under Gaussian noise (σ {self.sigma:g} in [0,1], before normalisation, not clipped)"

    @property
    def suffix(self) -> str:
        """With σ, because a network is accurate only at its own σ."""
        return f"-noise-{self.sigma:.2f}"

    def batch(self, net: nn.Module, x: Tensor, y: Tensor, noise: Generator) -> Tensor:  # noqa: ARG002
        """Fresh noise on every image."""
        return x + self.sigma * torch.randn(x.shape, generator=noise)


class Adversarial(Recipe):
    """Common to the recipes that train against attacks in L∞."""

    eps: Ratio = Field(0.1, gt=0, le=1, description="Radius of the L∞ ball, in [0,1].")

    def perturb(  # noqa: D102 - the name says it
        self, net: nn.Module, x: Tensor, y: Tensor, noise: Generator, *, steps: int, size: float
    ) -> Tensor:
        with in_eval_mode(net):
            return run_pgd(net, x, y, noise, eps=self.eps, steps=steps, size=size)


class Madry(Adversarial):
    """Every image is replaced by what PGD from a random start makes of it (Madry et al. 2018).

    Number and length of the steps default to the paper's for digits of the same size.
    """

    name = "madry"

    steps: Count = Field(40, le=1_000, description="Steps of the attack.")
    step_size: Distance = Field(0.01, gt=0, description="Length of a step in L∞.")

    @property
    def text(self) -> str:
        """The attack in full."""
        return (
            f"images attacked by PGD (L∞ ε {self.eps:g}, {self.steps} steps of {self.step_size:g} from a"
            " random start, the last point kept, network in eval mode)"
        )

    @property
    def suffix(self) -> str:
        """The norm in which the model is trained to be robust."""
        return "-linf"

    @model_validator(mode="after")
    def _check_reach(self) -> Madry:
        if self.steps * self.step_size < self.eps:
            raise ValueError(
                f"step_size: {self.steps} steps of {self.step_size:g} do not reach eps {self.eps:g};"
                f" usual is 2.5·eps/steps, {2.5 * self.eps / self.steps:.3g}"
            )
        return self

    def batch(self, net: nn.Module, x: Tensor, y: Tensor, noise: Generator) -> Tensor:
        """The last point of each attack."""
        return self.perturb(net, x, y, noise, steps=self.steps, size=self.step_size)


class Fast(Adversarial):
    """Adversarial training with one step from a random start: twice the cost of clean (Wong et al. 2020)."""

    name = "fast"

    reach: Ratio = Field(1.25, gt=0, le=10, description="Length of the step, in units of eps.")

    @property
    def text(self) -> str:
        """The attack in full."""
        return (
            f"images attacked by FGSM (L∞ ε {self.eps:g}, a step of {self.reach:g} ε from a random start,"
            " network in eval mode), watched for catastrophic overfitting"
        )

    @property
    def validation_eps(self) -> Distance | None:
        """At the radius of the training."""
        return self.eps

    def batch(self, net: nn.Module, x: Tensor, y: Tensor, noise: Generator) -> Tensor:
        """One step from a random start."""
        return self.perturb(net, x, y, noise, steps=1, size=self.reach * self.eps)


RECIPES: Mapping[str, type[Recipe]] = MappingProxyType(
    {cls.name: cls for cls in (Standard, Madry, Fast, Gaussian)}
)


def build_recipe(name: str, parameters: Mapping[str, Any] = MappingProxyType({})) -> Recipe:
    """The recipe of this name with these parameters. Raises InvalidParameter."""
    if name not in RECIPES:
        raise InvalidParameter(
            f"recipe: there is none named {name[:60]!r}; there are: {', '.join(RECIPES)}", field="recipe"
        )
    try:
        return RECIPES[name].model_validate(dict(parameters))
    except ValidationError as error:
        raise invalid_parameter(error) from None


@contextmanager
def in_eval_mode(net: nn.Module) -> Iterator[None]:
    """`net` in eval mode within the context: an attack must see the network as it will be used."""
    previous = net.training
    net.eval()
    try:
        yield
    finally:
        net.train(previous)


def run_pgd(
    net: nn.Module, x: Tensor, y: Tensor, noise: Generator, *, eps: float, steps: int, size: float
) -> Tensor:
    """PGD in L∞ from a random start, the last point of each row: the attack of training, which, unlike that
    of the catalogue, does not keep the first success.
    """
    threat = Threat(x, x.new_full((len(x),), eps), Linf())
    stride = torch.full_like(threat.eps, size)
    seed = int(torch.randint(2**62, (1,), generator=noise))
    point = threat.random_start(Noise.from_seeds([(seed, row) for row in range(len(x))], "training"))
    for _ in range(steps):
        point.requires_grad_()
        loss = functional.cross_entropy(net(point), y, reduction="sum")
        (grad,) = torch.autograd.grad(loss, point)
        point = threat.step(point.detach(), grad, stride)
    return point
