"""JSMA: repeatedly change the two values that help the target most."""

from __future__ import annotations

from dataclasses import replace
from math import floor
from typing import TYPE_CHECKING

from pydantic import Field, field_validator

from touchstone import engine
from touchstone.fields import Count, EotSamples, Norm, Ratio
from touchstone.lazy import torch
from touchstone.methods import Cost, Footprint, Info, MinimalNorm

if TYPE_CHECKING:
    from torch import Tensor

    from touchstone.engine import Case, Goal, Plan

TINY = 1e-30
MAX_PAIRS = 2**22
"""Pairs that are compared together: 16 MiB for each of the few tables of a block."""
MAX_CANDIDATES = 2**13
"""Values among which the best pair is looked for exactly."""
COARSE = 2**11
"""Of more values, so many are compared first, evenly spread, then all around the best two of them."""
MANY_VALUES = 2**18
"""Values of an image above which those that a few surpass are left out before any are sorted."""


class JSMA(MinimalNorm):
    """The Jacobian-based saliency map attack: changes the pair of values that raises the target's logit and
    lowers all others' sum the most, until the target is reached or `gamma` of the values are spent.

    Algorithm 3 of the paper, on logits. Values are counted, not pixels. An untargeted attack heads for the
    class that is likeliest at the start but the label, and takes any other answer.

    The best pair is exact, without a table of all pairs (84 GiB for an image of 224×224): a value that two
    others surpass in both respects cannot be in it. What remains after sorting, dozens as a rule, is compared
    in blocks of at most 4 million pairs. If more than 8,192 values remain, which takes gains and losses that
    are exactly opposed, the search is no longer exact: 2,048 of them, evenly spread, are compared, then all
    near the best two.
    """

    info = Info(
        name="jsma",
        title="Jacobian-based saliency map attack",
        norms=("l0",),
        paper="Papernot et al. 2016: The Limitations of Deep Learning in Adversarial Settings",
        url="https://arxiv.org/abs/1511.07528",
        budget="minimal",
    )

    norm: Norm = Field("l0", description="The norm in which the perturbation is measured.")
    theta: Ratio = Field(
        1.0, ge=-1, le=1, description="θ: what is added to a chosen value; negative ones are taken away."
    )
    gamma: Ratio = Field(0.1, gt=0, le=1, description="γ: the largest share of the values to change.")
    steps: Count = Field(1_000, le=100_000, description="The most pairs to change, whatever the share.")
    eot: EotSamples = 1

    @field_validator("theta")
    @classmethod
    def _check_theta(cls, theta: float) -> float:
        if not theta:
            raise ValueError("a change of 0 changes nothing")
        return theta

    def cost(self) -> Cost:
        """Per pair two gradients; a query at the end."""
        return Cost(forward=2 * self.steps + 2, backward=2 * self.steps)

    def footprint(self) -> Footprint:
        """What remains of a sort of all values."""
        return replace(super().footprint(), images=24)

    def run(self, case: Case) -> Plan:
        """Pair after pair. Rows leave when they met their goal, or no pair is left that helps."""
        whole, x = case, case.threat.x0
        target = _targets(case.goal, (yield engine.Logits(x)).logits)
        rows, best = torch.arange(len(x), device=x.device), engine.Nearest.initial(x)
        for _ in range(min(self.steps, floor(x[0].numel() * self.gamma / 2))):
            ours = yield engine.Gradient(x, engine.CustomLoss(_target_logit, target))
            all_ = yield engine.Gradient(x, engine.CustomLoss(_logit_sum, target))
            found = engine.Nearest.from_logits(case, x, ours.logits)
            best = best.put(rows, found)
            x, moved = self._change_pairs(x, ours.gradient, all_.gradient - ours.gradient)
            keep = (moved & ~found.met).nonzero().flatten()
            if not len(keep):
                return best.to_found(whole)
            case, x, rows, target = case[keep], x[keep], rows[keep], target[keep]
        answer = yield engine.Logits(x)
        return best.put(rows, engine.Nearest.from_logits(case, x, answer.logits)).to_found(whole)

    def _change_pairs(self, x: Tensor, ours: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        """The points with their best pairs changed, and which rows had one, (B,)."""
        sign = 1.0 if self.theta > 0 else -1.0
        spent = (x >= 1 if self.theta > 0 else x <= 0).flatten(1)
        gain = (sign * ours).flatten(1).masked_fill(spent, -torch.inf)
        pair, helps = best_pairs(gain, (-sign * others).flatten(1))
        change = torch.zeros_like(gain).scatter_(1, pair, self.theta) * helps[:, None]
        return (x + change.view_as(x)).clamp(0, 1), helps


def _targets(goal: Goal, clean: Tensor) -> Tensor:
    runner_up = clean.scatter(1, goal.label[:, None], -torch.inf).argmax(1)
    return goal.label.where(goal.targeted, runner_up)


def _target_logit(logits: Tensor, target: Tensor) -> Tensor:
    return logits.gather(1, target[:, None])[:, 0]


def _logit_sum(logits: Tensor, target: Tensor) -> Tensor:  # noqa: ARG001
    return logits.sum(1)


def best_pairs(gain: Tensor, fall: Tensor) -> tuple[Tensor, Tensor]:
    """The pair of each row (B, 2) with the largest product of summed gains and summed falls, and whether it
    has one (B,) in which both are positive.

    `gain` and `fall` (B, n); a value that must not be chosen has a gain of -inf.
    """
    chosen = _pareto_front(gain, fall)
    while chosen.shape[1] > MAX_CANDIDATES:
        chosen = _narrow(gain, fall, chosen)
    return _best_pairs_of(gain, fall, chosen)


def _best_pairs_of(gain: Tensor, fall: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """The best pair of each row among the values at the indices `chosen` (B, k)."""
    gain, fall = gain.gather(1, chosen), fall.gather(1, chosen)
    count = chosen.shape[1]
    score, place = gain.new_zeros(len(gain)), chosen.new_zeros(len(gain))
    block = max(1, MAX_PAIRS // (count * len(gain)))
    for start in range(0, count, block):
        part, at = _saliency(gain, fall, start, min(start + block, count)).flatten(1).max(1)
        score, place = part.maximum(score), (at + start * count).where(part > score, place)
    pair = torch.stack([place // count, place % count], 1)
    return chosen.gather(1, pair), score > 0


def _saliency(gain: Tensor, fall: Tensor, start: int, end: int) -> Tensor:
    """Saliency (B, end - start, n) of the pairs of some values with all that come later; 0 of those that do
    not help.
    """
    gains = (gain[:, start:end, None] + gain[:, None]).clamp_min_(0)
    falls = (fall[:, start:end, None] + fall[:, None]).clamp_min_(0)
    return gains.mul_(falls).triu_(start + 1)


def _narrow(gain: Tensor, fall: Tensor, chosen: Tensor) -> Tensor:
    """Of many values (B, k), by falling gain, those near the best pair of an even selection."""
    count = chosen.shape[1]
    even = torch.linspace(0, count - 1, COARSE, device=chosen.device).long()
    coarse = chosen[:, even]
    pair, _ = _best_pairs_of(gain, fall, coarse)
    place = even[(coarse[:, None] == pair[..., None]).int().argmax(2)]  # (B, 2)
    reach = -(-count // COARSE)
    near = torch.arange(-reach, reach + 1, device=chosen.device)
    # Windows that overlap would hold a value twice, which is no pair.
    first, second = place.sort(1).values.unbind(1)
    second = second.maximum(first + 2 * reach + 1).clamp_max(count - 1 - reach)
    first = first.clamp_min(reach).minimum(second - 2 * reach - 1)
    windows = torch.cat([first[:, None] + near, second[:, None] + near], 1)
    return chosen.gather(1, windows)


def _leave_out_surpassed(gain: Tensor, fall: Tensor) -> Tensor:
    """Indices (n,) of the values of one row (1, N) that are left when those are gone that the two with the
    largest least advantage surpass in both respects; at least two. No sort of all values is needed.
    """
    gains, falls = gain[0], fall[0]
    free = ~gains.isneginf()
    if int(free.sum()) < 3:
        return torch.arange(len(gains), device=gain.device)
    least = _share(gains, free).minimum(_share(falls, free)).masked_fill(~free, -torch.inf)
    two = least.topk(2).indices
    surpassed = (gains < gains[two].amin()) & (falls < falls[two].amin())
    return (~surpassed & free).nonzero().flatten()


def _share(values: Tensor, free: Tensor) -> Tensor:
    """The values of which some are free, from 0 for the least of these to 1 for the largest."""
    low = values.masked_fill(~free, torch.inf).amin()
    high = values.masked_fill(~free, -torch.inf).amax()
    return (values - low) / (high - low).clamp_min(TINY)


def _pareto_front(gain: Tensor, fall: Tensor) -> Tensor:
    """Indices (B, k) of the values that at most one other surpasses in both, by falling gain, filled up with
    others.
    """
    if len(gain) == 1 and gain.shape[1] > MANY_VALUES:
        left = _leave_out_surpassed(gain, fall)
        if len(left) > 1:
            return left[_sorted_front(gain[:, left], fall[:, left])]
    return _sorted_front(gain, fall)


def _sorted_front(gain: Tensor, fall: Tensor) -> Tensor:
    gains, order = gain.sort(dim=1, descending=True, stable=True)
    falls = fall.gather(1, order).masked_fill(gains.isneginf(), -torch.inf)
    first = torch.nn.functional.pad(falls.cummax(1).values[:, :-1], (1, 0), value=-torch.inf)
    second = falls.minimum(first).cummax(1).values
    second = torch.nn.functional.pad(second[:, :-1], (1, 0), value=-torch.inf)
    surpassed = second >= falls
    count = max(2, int((~surpassed).sum(1).max()))
    return order.gather(1, surpassed.to(torch.uint8).argsort(dim=1, stable=True)[:, :count])
