"""Transfer: craft adversarial images on surrogates, for a model whose gradients are unknown."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field

from touchstone import engine
from touchstone.attacks.mifgsm import Momentum
from touchstone.fields import Count, Distance, Ratio
from touchstone.lazy import torch
from touchstone.methods import Cost, E, FixedBudget, Info, StepSize

if TYPE_CHECKING:
    from torch import Tensor

    from touchstone.engine import Case, Plan, PlanOf


def _split_ids(value: Any) -> Any:
    """Model ids, from a list or from a comma-separated string."""
    return tuple(filter(None, map(str.strip, value.split(",")))) if isinstance(value, str) else value


class Transfer(StepSize, FixedBudget):
    """Follows the mean gradient of surrogates, and submits the result to the model under attack, once.

    Momentum adds up gradients (MI, 1710.06081); with probability `diversity` an image is shrunk and placed at
    random before the surrogates see it (DI, Xie et al. 2019, 1803.06978); a Gaussian blurs gradients (TI,
    1904.02884), for models that attend to other regions. Unlike the papers it works in L2, too. The model
    under attack is queried for the verdict only.
    """

    info = Info(
        name="transfer",
        title="Transfer from surrogates (MI, DI, TI)",
        norms=("linf", "l2"),
        paper="Dong et al. 2019: Evading Defenses to Transferable Adversarial Examples",
        url="https://arxiv.org/abs/1904.02884",
        access="transfer",
    )

    surrogate: Annotated[tuple[str, ...], BeforeValidator(_split_ids)] = Field(
        (),
        max_length=8,
        description="Ids of the models to craft on; unset means up to four others of the same classes.",
    )
    steps: Count = Field(10, le=1_000, description="How many steps to take.")
    step_size: Distance | None = Field(
        None, description="Length of a step in the norm; unset means eps/steps.", examples=["1/255"]
    )
    decay: Ratio = Field(1.0, ge=0, le=10, description="MI: what remains of the momentum in the next step.")
    diversity: Ratio = Field(0.7, ge=0, le=1, description="DI: how often an image is shrunk and moved.")
    shrink: Ratio = Field(0.9, ge=0.5, le=1, description="DI: the smallest side, as a share of the image's.")
    blur: Ratio = Field(0.0, ge=0, le=10, description="TI: σ of the Gaussian in pixels; 0 does not blur.")

    def cost(self) -> Cost:
        """A gradient of each surrogate a step, at worst a second one where cross-entropy is saturated, and
        one query of the result.
        """
        queries = 2 * self.rounds()
        return Cost(forward=queries + 1, backward=queries)

    def rounds(self) -> int:
        """One per step and surrogate."""
        return self.steps * max(1, len(self.surrogate))

    def default_step_size(self, eps: E) -> E:
        """So that all steps together are as long as the radius."""
        return eps / self.steps

    def run(self, case: Case) -> Plan:
        """Climb on the surrogates; the verdict is the only query of the model itself."""
        eps, x = case.threat.eps, case.threat.x0
        rule = Momentum(self.resolve_step_size(eps), x.new_zeros(x.shape), self.decay)
        for _ in range(self.steps):
            grad = yield from self._mean_gradient(case, x)
            x, rule = rule.advance(case.threat, x, grad, eps)
        answer = yield case.query(x)
        return engine.Found(x, case.goal.is_met(answer.logits))

    def _mean_gradient(self, case: Case, x: Tensor) -> PlanOf[Tensor]:
        """The mean of the surrogates' gradients, all at the same randomly transformed images."""
        transformed, back = _diversify(case, x, self.diversity, self.shrink)
        total = torch.zeros_like(x)
        for surrogate in case.surrogates:
            answer = yield engine.Gradient(transformed, engine.CrossEntropy(case.goal), surrogate=surrogate)
            grad = back(
                (yield from engine.replace_saturated_gradient(case, transformed, answer, surrogate=surrogate))
            )
            scale = grad.flatten(1).abs().mean(1).clamp_min(1e-30)
            total = total + grad / engine.column(scale, grad)
        return _blur(total, self.blur) if self.blur else total


def _diversify(case: Case, x: Tensor, often: float, least: float) -> tuple[Tensor, Any]:
    """The images, some of them shrunk and placed at random; and the map of gradients back to `x`."""
    draw = case.noise.uniform(x.new_zeros(len(x), 4))
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        rows = [_shrink_and_pad(leaf[i : i + 1], dice, often, least) for i, dice in enumerate(draw.tolist())]
        transformed = torch.cat(rows)
    return transformed.detach(), partial(_pull_back, transformed, leaf)


def _shrink_and_pad(x: Tensor, dice: list[float], often: float, least: float) -> Tensor:
    functional = torch.nn.functional
    happens, size, down, right = dice
    if happens >= often:
        return x
    height, width = x.shape[-2:]
    share = least + (1 - least) * size
    small = [max(1, round(share * height)), max(1, round(share * width))]
    top, left = int(down * (height - small[0] + 1)), int(right * (width - small[1] + 1))
    shrunk = functional.interpolate(x, size=small, mode="bilinear", antialias=False)
    margins = (left, width - small[1] - left, top, height - small[0] - top)
    return functional.pad(shrunk, margins)


def _pull_back(transformed: Tensor, leaf: Tensor, grad: Tensor) -> Tensor:
    pulled: Tensor = torch.autograd.grad(transformed, leaf, grad, retain_graph=True)[0]
    return pulled


def _blur(grad: Tensor, sigma: float) -> Tensor:
    """Each channel under a Gaussian of three σ each way."""
    reach = max(1, round(3 * sigma))
    places = torch.arange(-reach, reach + 1, device=grad.device, dtype=grad.dtype)
    line = torch.exp(-places.square() / (2 * sigma**2))
    kernel = (line[:, None] * line[None] / line.sum() ** 2).expand(grad.shape[1], 1, -1, -1)
    blurred: Tensor = torch.nn.functional.conv2d(grad, kernel, padding=reach, groups=grad.shape[1])
    return blurred
