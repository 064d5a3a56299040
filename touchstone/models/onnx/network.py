"""An imported network as a PyTorch module."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from touchstone.models.onnx.evaluation import ShapeInference
from touchstone.models.onnx.graph import Node
from touchstone.models.onnx.program import Program, compile_program
from touchstone.models.random_streams import open_streams

MAX_PROGRAMS = 64
"""Maximum input shapes whose programs are cached."""


class Network(nn.Module):
    """Images (N, C, H, W) to logits (N, K). Weights are buffers: they move and change type with the module.

    `batch` is the number of rows that it takes at a time, None for any.
    For each input shape, shape inference runs once and gives a program without any arithmetic of shapes.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        known: Mapping[str, Tensor],
        *,
        entry: str,
        output: str,
        opset: int,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
        randomized: bool = False,
    ) -> None:
        super().__init__()
        self.nodes, self.opset, self.entry, self.output = tuple(nodes), opset, entry, output
        self.channels_last, self.randomized = channels_last, randomized
        self.batch: int | None = None
        read = {name for node in nodes for name in node.inputs} | {output}
        self._names = {name: f"known{i}" for i, name in enumerate(sorted(read & known.keys()))}
        for name, buffer in self._names.items():
            self.register_buffer(buffer, known[name])
        self.register_buffer("_type", torch.zeros(0, dtype=dtype), persistent=False)
        parts = [node.attributes["module"] for node in nodes if node.kind == "fused.Trunk"]
        self.parts = nn.ModuleList(parts)
        self._programs: OrderedDict[tuple[Any, ...], Program] = OrderedDict()

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits, so many rows at a time as the file takes."""
        if self.batch is None or len(x) == self.batch:
            return self._answer(x)
        return torch.cat([self._answer_padded(rows, self.batch) for rows in torch.split(x, self.batch)])

    def _answer_padded(self, x: Tensor, batch: int) -> Tensor:
        """The last row stands for those that are missing, without a gradient."""
        last = x[-1:].detach()
        padded = torch.cat([x, last.expand(batch - len(x), -1, -1, -1)])
        return self._answer(padded, padding=batch - len(x))[: len(x)]

    def _answer(self, x: Tensor, padding: int = 0) -> Tensor:
        if not self.randomized:
            return self._compute(x)
        with open_streams(len(x) - padding, padding, x.device):
            return self._compute(x)

    def _compute(self, x: Tensor) -> Tensor:
        inputs = (x.permute(0, 2, 3, 1) if self.channels_last else x).to(self._type.dtype)  # type: ignore[arg-type]
        logits = self.program(inputs).run(inputs).reshape(len(x), -1)
        return logits if logits.dtype == x.dtype else logits.to(x.dtype)

    def program(self, x: Tensor) -> Program:
        """The program for inputs of this shape. Raises InvalidModel where the network cannot take them."""
        key = (x.shape, x.dtype, x.device)
        if key not in self._programs:
            self._programs[key] = compile_program(self.infer_shapes(x), self.entry, self.output, x.device)
            if len(self._programs) > MAX_PROGRAMS:
                self._programs.popitem(last=False)
        self._programs.move_to_end(key)
        return self._programs[key]

    def infer_shapes(self, x: Tensor) -> ShapeInference:
        """Shape inference for inputs of this shape."""
        known = {name: self.get_buffer(buffer) for name, buffer in self._names.items()}
        return ShapeInference(self.opset, known, self.entry, x).run(self.nodes)

    def _apply(self, *args: Any, **kwargs: Any) -> Network:
        self._programs.clear()  # the weights are about to move or change their type
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {
            **self.__dict__,
            "_programs": OrderedDict(),
        }  # cheap to rebuild, and would save the weights twice
