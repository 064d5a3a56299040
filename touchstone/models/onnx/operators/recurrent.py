"""Recurrent layers, computed step by step.

Sequences of unequal lengths, clipped cells and unusual activations are refused: exporters of classifiers
write none. Dimensions: T steps, N rows, D directions, G gates of H numbers each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from touchstone.models.onnx.registry import Known, operator

MAX_STEPS = 4096
BACKWARD = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}

State = tuple[Tensor, ...]
Cell = Callable[[Tensor, State], State]
"""From what a step's input adds to the gates, (N, G·H), and a state to the next one, of (N, H) each."""

Names = tuple[str, ...]


@operator("RNN")
def rnn(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Known | None = None,
    h: Tensor | None = None,
    *,
    hidden_size: int | None = None,
    activations: Names = ("Tanh",),
    direction: str = "forward",
    layout: int = 0,
    output_sequence: int = 1,
) -> tuple[Tensor, ...]:
    relu = {name.lower() for name in activations} == {"relu"}
    _check_activations(activations, ("Relu",) if relu else ("Tanh",))
    function = torch.relu if relu else torch.tanh
    of_input, of_state = _split_bias(b, w)
    cells = [partial(_rnn_cell, function, *one) for one in zip(r, of_state, strict=True)]
    return _run(
        cells,
        x,
        w=w,
        bias=of_input,
        lengths=lengths,
        initial=(h,),
        hidden=r.shape[2],
        direction=direction,
        layout=layout,
    )


def _rnn_cell(
    function: Callable[[Tensor], Tensor], r: Tensor, bias: Tensor, gates: Tensor, state: State
) -> State:
    [h] = state
    return (function(gates + h @ r.T + bias),)


@operator("GRU")
def gru(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Known | None = None,
    h: Tensor | None = None,
    *,
    hidden_size: int | None = None,
    activations: Names = ("Sigmoid", "Tanh"),
    direction: str = "forward",
    layout: int = 0,
    linear_before_reset: int = 0,
    output_sequence: int = 1,
) -> tuple[Tensor, ...]:
    _check_activations(activations, ("Sigmoid", "Tanh"))
    of_input, of_state = _split_bias(b, w)
    cell = _gru_cell_reset_last if linear_before_reset else _gru_cell_reset_first
    cells = [partial(cell, *one) for one in zip(r, of_state, strict=True)]
    return _run(
        cells,
        x,
        w=w,
        bias=of_input,
        lengths=lengths,
        initial=(h,),
        hidden=r.shape[2],
        direction=direction,
        layout=layout,
    )


def _gru_cell_reset_first(r: Tensor, bias: Tensor, gates: Tensor, state: State) -> State:
    """The candidate reads the state times the reset gate."""
    [h] = state
    both = 2 * h.shape[1]
    update, reset = torch.sigmoid(gates[:, :both] + h @ r[:both].T + bias[:both]).chunk(2, 1)
    candidate = torch.tanh(gates[:, both:] + (reset * h) @ r[both:].T + bias[both:])
    return (candidate + update * (h - candidate),)


def _gru_cell_reset_last(r: Tensor, bias: Tensor, gates: Tensor, state: State) -> State:
    """The reset gate multiplies what the candidate has computed of the state; PyTorch's and cuDNN's GRU."""
    [h] = state
    both = 2 * h.shape[1]
    of_state = h @ r.T + bias
    update, reset = torch.sigmoid(gates[:, :both] + of_state[:, :both]).chunk(2, 1)
    candidate = torch.tanh(gates[:, both:] + reset * of_state[:, both:])
    return (candidate + update * (h - candidate),)


@operator("LSTM")
def lstm(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Known | None = None,
    h: Tensor | None = None,
    c: Tensor | None = None,
    p: Tensor | None = None,
    *,
    hidden_size: int | None = None,
    activations: Names = ("Sigmoid", "Tanh", "Tanh"),
    direction: str = "forward",
    layout: int = 0,
    input_forget: int = 0,
    output_sequence: int = 1,
) -> tuple[Tensor, ...]:
    _check_activations(activations, ("Sigmoid", "Tanh", "Tanh"))
    if input_forget:
        raise ValueError("coupled gates are not supported")
    of_input, of_state = _split_bias(b, w)
    peepholes = r.new_zeros(len(r), 3 * r.shape[2]) if p is None else p
    cells = [partial(_lstm_cell, *one) for one in zip(r, of_state, peepholes, strict=True)]
    return _run(
        cells,
        x,
        w=w,
        bias=of_input,
        lengths=lengths,
        initial=(h, c),
        hidden=r.shape[2],
        direction=direction,
        layout=layout,
    )


def _lstm_cell(r: Tensor, bias: Tensor, peepholes: Tensor, gates: Tensor, state: State) -> State:
    h, c = state
    enter, leave, forget, candidate = (gates + h @ r.T + bias).chunk(4, 1)
    see_enter, see_leave, see_forget = peepholes.chunk(3)
    kept = torch.sigmoid(forget + see_forget * c) * c
    c = kept + torch.sigmoid(enter + see_enter * c) * torch.tanh(candidate)
    return torch.sigmoid(leave + see_leave * c) * torch.tanh(c), c


def _check_activations(names: Names, usual: Names) -> None:
    """Raise ValueError where the names, which repeat for a second direction, are not the usual ones."""
    found = tuple(name.lower() for name in names)
    if found not in (expected := tuple(name.lower() for name in usual), 2 * expected):
        raise ValueError(f"the activations {', '.join(names)[:80]} are not supported")


def _split_bias(b: Tensor | None, w: Tensor) -> tuple[Tensor, Tensor]:
    """The biases of the input and of the state, (D, G·H) each."""
    if b is None:
        b = w.new_zeros(len(w), 2 * w.shape[1])
    of_input, of_state = b.chunk(2, 1)
    return of_input, of_state


def _run(
    cells: Sequence[Cell],
    x: Tensor,
    *,
    w: Tensor,
    bias: Tensor,
    lengths: Known | None,
    initial: Sequence[Tensor | None],
    hidden: int,
    direction: str,
    layout: int,
) -> tuple[Tensor, ...]:
    """All outputs (T, D, N, H) and the last states (D, N, H); with `layout` 1, N is first, in inputs too."""
    x = x.transpose(0, 1) if layout else x
    steps, rows, _ = x.shape
    if steps > MAX_STEPS or (lengths is not None and (lengths != steps).any()):
        raise ValueError(f"sequences must all have the same length, at most {MAX_STEPS}")
    gates = torch.einsum("tni,dgi->dtng", x, w) + bias[:, None, None]
    none = x.new_zeros(len(cells), rows, hidden)
    states = [none if one is None else one.transpose(0, 1) if layout else one for one in initial]
    backward = BACKWARD.get(direction, ())
    if len(backward) != len(cells):
        raise ValueError(f"the direction {direction[:40]!r} does not fit weights for {len(cells)}")
    ways = zip(cells, gates, zip(*states, strict=True), backward, strict=True)
    outputs, last = zip(*(_run_direction(*way) for way in ways), strict=True)
    y, ends = torch.stack(outputs, 1), [torch.stack(parts) for parts in zip(*last, strict=True)]
    return (y.permute(2, 0, 1, 3), *(end.transpose(0, 1) for end in ends)) if layout else (y, *ends)


def _run_direction(cell: Cell, gates: Tensor, state: State, backward: bool) -> tuple[Tensor, State]:
    """The outputs (T, N, H) of one direction, in the order of the input, and its last state."""
    outputs = []
    for step in (gates.flip(0) if backward else gates).unbind(0):
        state = cell(step, state)
        outputs.append(state[0])
    y = torch.stack(outputs)
    return y.flip(0) if backward else y, state
