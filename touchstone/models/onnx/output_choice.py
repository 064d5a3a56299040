"""Which of a network's outputs is the classifier's. Never imports torch."""

from __future__ import annotations

from collections.abc import Sequence

from touchstone.errors import InvalidModel
from touchstone.models.onnx.graph import Port

MAX_LISTED = 10


def choose_output(ports: Sequence[Port], name: str | None, classes: int | None) -> Port:
    """The output of this name; without one, the only output, or the only one with a number for each class.

    Raises InvalidModel, which lists the outputs, where it is not certain.
    """
    if not ports:
        raise InvalidModel("the network must have one output, the logits; it has none")
    if name is not None:
        named = [port for port in ports if port.name == name]
        if not named:
            raise InvalidModel(
                f"output: the network has no output {name[:80]!r}; it has {_list(ports)}", field="output"
            )
        return named[0]
    fitting = ports if len(ports) == 1 else _find_fitting(ports, classes)
    if len(fitting) != 1:
        raise InvalidModel(
            f"the network has several outputs; name the logits in output: {_list(ports)}", field="output"
        )
    return fitting[0]


def _find_fitting(ports: Sequence[Port], classes: int | None) -> list[Port]:
    """The outputs with a number for each class; where none has, those that may, or that have one for two."""
    floats = [port for port in ports if port.dtype.kind == "f"]
    exact = [port for port in floats if _numbers(port) == [classes]]
    single = [port for port in floats if classes == 2 and _numbers(port) == []]
    return exact or single or [port for port in floats if len(port.shape) == 2 and _numbers(port) == [None]]


def _numbers(port: Port) -> list[int | None]:
    """The sizes of an output for one image, but those that are one."""
    return [side for side in port.shape[1:] if side != 1]


def _list(ports: Sequence[Port]) -> str:
    shown = ", ".join(f"{port.name[:40]!r} {port.format_shape()}" for port in ports[:MAX_LISTED])
    return shown + (" and more" if len(ports) > MAX_LISTED else "")
