"""What PyTorch's exporters write, and what other tools make of it. Runs in the environment with torch."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import onnxsim
import onnxslim
import torch
from onnxconverter_common import float16 as common_float16
from onnxruntime.transformers import float16 as runtime_float16
from torch import nn
from ultralytics import YOLO

from tools.exporters.protocol import Export, Facts, serve
from tools.exporters.torch_networks import CLASSES, NETWORKS, Network, make

os.environ["YOLO_AUTOINSTALL"] = "false"
PACKAGES = (
    *("torch", "torchvision", "timm", "transformers", "ultralytics", "onnx", "onnxscript", "onnxruntime"),
    *("onnxsim", "onnxslim", "onnxconverter-common"),
)

Write = Callable[[nn.Module, torch.Tensor, Path], object]

BATCH = {0: "batch"}
OPEN = {0: "batch", 1: "channels", 2: "height", 3: "width"}


def write_dynamo(net: nn.Module, x: torch.Tensor, path: Path, **options: Any) -> None:
    """The exporter by torch.export."""
    chosen = {"dynamic_shapes": (BATCH,), "external_data": False, **options}
    torch.onnx.export(net, (x,), path, dynamo=True, verbose=False, **chosen)


def write_traced(net: nn.Module, x: torch.Tensor, path: Path, **options: Any) -> None:
    """The exporter by tracing to TorchScript, whose names and axes are those that transformers gives."""
    names: dict[str, Any] = {"input_names": ["pixel_values"], "output_names": ["logits"]}
    chosen = {"dynamic_axes": {"pixel_values": BATCH, "logits": BATCH}, **names, **options}
    torch.onnx.export(net, (x,), path, dynamo=False, **chosen)


def write_plainly(net: nn.Module, x: torch.Tensor, path: Path) -> None:
    """What a call without options writes: for one image, with the weights in a second file."""
    torch.onnx.export(net, (x[:1],), path)


def write_scripted(net: nn.Module, x: torch.Tensor, path: Path) -> None:
    """A network with its control flow."""
    write_traced(torch.jit.script(net), x, path)


def write_half(net: nn.Module, x: torch.Tensor, path: Path) -> None:
    """A network converted to half precision before its export."""
    write_traced(net.half(), x.half(), path)


EXPORTERS: dict[str, Write] = {
    "torch.onnx dynamo": write_dynamo,
    "torch.onnx TorchScript": write_traced,
}

VARIANTS: dict[str, Write] = {
    "torch.onnx dynamo, without options": write_plainly,
    "torch.onnx dynamo, not optimized": partial(write_dynamo, optimize=False),
    "torch.onnx TorchScript, all axes open": partial(
        write_traced, dynamic_axes={"pixel_values": OPEN, "logits": BATCH}
    ),
    "torch.onnx TorchScript, opset 9": partial(write_traced, opset_version=9),
    "torch.onnx TorchScript, weights as inputs": partial(
        write_traced, keep_initializers_as_inputs=True, do_constant_folding=False
    ),
    "torch.onnx TorchScript, half": write_half,
}
VARIED = (("own", "convolutional"), ("transformers", "ViT"), ("torchvision", "mobilenet_v3_small"))


def _optimize(model: onnx.ModelProto) -> onnx.ModelProto:
    """What ONNX Runtime saves of its basic optimizations, which use ONNX's operators alone."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
        options.optimized_model_filepath = file.name
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(file.name)


REWRITERS: dict[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
    "onnxsim": lambda model: onnxsim.simplify(model)[0],
    "onnxslim": onnxslim.slim,
    "onnxruntime basic optimizations": _optimize,
    "onnxconverter-common float16": common_float16.convert_float_to_float16,
    "onnxconverter-common float16, float32 outside": partial(
        common_float16.convert_float_to_float16, keep_io_types=True
    ),
    "onnxruntime.transformers float16": partial(runtime_float16.convert_float_to_float16, keep_io_types=True),
}


def export(network: Network, write: Write, path: Path) -> Facts:
    """Build a network and write its file."""
    write(make(network), torch.randn(2, 3, network.side, network.side), path)
    return {"side": network.side, "classes": CLASSES}


def rewrite(network: Network, write: Write, change: Callable[[Any], onnx.ModelProto], path: Path) -> Facts:
    """The same, changed by another tool."""
    facts = export(network, write, path)
    onnx.save(change(onnx.load(path)), path)
    return facts


@cache
def _yolo(name: str) -> nn.Module:
    torch.manual_seed(0)
    return make(Network(lambda: YOLO(name, task="classify").model, 64))


def export_yolo(name: str, path: Path, **options: Any) -> Facts:
    """A classifier of ultralytics, which ends in a Softmax."""
    torch.manual_seed(0)
    yolo = YOLO(name, task="classify")
    made = make(Network(lambda: yolo.model, 64))
    yolo.model = made
    written = Path(yolo.export(format="onnx", imgsz=64, device="cpu", **options))
    written.rename(path)
    return {"side": 64, "classes": 1000}


def _list_cases() -> Iterator[tuple[str, Export]]:
    for library, networks in NETWORKS.items():
        for name, network in networks.items():
            for exporter, write in EXPORTERS.items():
                yield f"{library}/{name}/{exporter}", partial(export, network, write)
    looped = NETWORKS["own"]["looped"]
    yield "own/looped/torch.onnx TorchScript, scripted", partial(export, looped, write_scripted)
    for library, name in VARIED:
        network = NETWORKS[library][name]
        for exporter, write in VARIANTS.items():
            yield f"{library}/{name}/{exporter}", partial(export, network, write)
        for tool, change in REWRITERS.items():
            yield f"{library}/{name}/{tool}", partial(rewrite, network, write_traced, change)
        for tool in ("onnxsim", "onnxslim"):
            yield (
                f"{library}/{name}/{tool} of dynamo",
                partial(rewrite, network, write_dynamo, REWRITERS[tool]),
            )
    for name in ("yolov8n-cls", "yolo11n-cls"):
        yield f"ultralytics/{name}/ultralytics", partial(export_yolo, f"{name}.yaml", simplify=False)
        yield f"ultralytics/{name}/ultralytics simplify", partial(export_yolo, f"{name}.yaml", simplify=True)
        yield (
            f"ultralytics/{name}/ultralytics dynamic",
            partial(export_yolo, f"{name}.yaml", simplify=True, dynamic=True),
        )


if __name__ == "__main__":
    serve(dict(_list_cases()), PACKAGES)
