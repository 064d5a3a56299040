"""A network for inputs of one shape: a list of calls, all shape arithmetic done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from touchstone.models.onnx.evaluation import ShapeInference, array_of, call, operator_of
from touchstone.models.onnx.graph import Node


class Step(NamedTuple):
    """A call: the slots of its arguments and results, and those that are not needed afterwards."""

    node: Node
    function: Callable[..., Any]
    arguments: tuple[int, ...]
    results: tuple[int, ...]
    dead: tuple[int, ...]


@dataclass(frozen=True)
class Program:
    """Steps over numbered slots; `slots` has the constants."""

    slots: tuple[Any, ...]
    entry: int
    exit: int
    steps: tuple[Step, ...]

    def run(self, x: Tensor) -> Tensor:
        """The output for an input of the program's shape."""
        slots = list(self.slots)
        slots[self.entry] = x
        for node, function, arguments, results, dead in self.steps:
            values = call(node, function, [slots[i] for i in arguments])
            for i, value in zip(results, values, strict=False):
                slots[i] = value
            for i in dead:
                slots[i] = None
        output: Tensor = slots[self.exit]
        return output


class SlotTable:
    """Gives every value a slot number; one name may have two slots, as a tensor and as an array."""

    def __init__(self, inference: ShapeInference, device: Any) -> None:
        self.values: list[Any] = [None]  # slot 0 is for omitted inputs
        self._inference, self._device = inference, device
        self._numbers: dict[tuple[str, bool], int] = {("", False): 0, ("", True): 0}

    def of(self, name: str) -> int:
        """The slot of a tensor."""
        if (name, False) not in self._numbers:
            known = self._inference.known.get(name)
            self._add((name, False), None if known is None else known.to(self._device))
        return self._numbers[name, False]

    def of_array(self, node: Node, name: str) -> int:
        """The slot of a value that an operator takes as a numpy array."""
        if (name, True) not in self._numbers:
            self._add((name, True), array_of(node, self._inference.known, name))
        return self._numbers[name, True]

    def _add(self, key: tuple[str, bool], value: Any) -> None:
        self._numbers[key] = len(self.values)
        self.values.append(value)


def compile_program(inference: ShapeInference, entry: str, output: str, device: Any) -> Program:
    """The program of the nodes that shape inference left."""
    slots = SlotTable(inference, device)
    exit_slot, entry_slot = slots.of(output), slots.of(entry)
    steps = [_compile_step(node, inference.opset, slots) for node in inference.remaining]
    return Program(tuple(slots.values), entry_slot, exit_slot, _mark_dead(steps, slots, exit_slot))


def _compile_step(node: Node, opset: int, slots: SlotTable) -> Step:
    operator = operator_of(node, opset)
    arguments = tuple(
        slots.of_array(node, name) if position in operator.known else slots.of(name)
        for position, name in enumerate(node.inputs)
    )
    results = tuple(slots.of(name) for name in node.outputs)
    return Step(node, operator.bind(node), arguments, results, ())


def _mark_dead(steps: Sequence[Step], slots: SlotTable, output: int) -> tuple[Step, ...]:
    """The same steps, each with the slots whose values it is the last to need."""
    needed, ended = {output}, []
    for step in reversed(steps):
        touched = {i for i in (*step.arguments, *step.results) if slots.values[i] is None and i}
        ended.append(step._replace(dead=tuple(sorted(touched - needed))))
        needed |= touched
    return tuple(reversed(ended))
