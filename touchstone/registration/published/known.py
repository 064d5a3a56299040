"""All that is known of a model before its trial: what the client states, and what is published with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from touchstone.errors import InvalidParameter
from touchstone.registration.published import classifier_config, image_processors
from touchstone.registration.published.facts import PACKAGED, STATED, Facts, Merged, merge, refuse
from touchstone.registration.published.packages import read_packaged

_OF_THE_NETWORK = ("architecture", "config")


def gather(
    stated: Mapping[str, Any],
    config: Mapping[str, Any] | None,
    preprocessor_config: Mapping[str, Any] | None,
    *,
    with_network: bool,
) -> Merged:
    """What is stated, then what the configurations say, then what an installed package publishes.

    `with_network` is false where the file contains its architecture. Raises InvalidParameter.
    """
    facts = [Facts(STATED, stated)]
    if preprocessor_config is not None:
        facts.append(image_processors.read_preprocessor(preprocessor_config))
    if config is not None:
        facts.append(_select(classifier_config.read_config(config), with_network=with_network))
    _check_agreement(facts)
    architecture = str(merge(facts).values.get("architecture"))
    if architecture.startswith(PACKAGED):
        facts.extend(_read_lacking(architecture, merge(facts).values))
    merged = merge(facts)
    _check_crop(merged)
    return merged


def _read_lacking(architecture: str, known: Mapping[str, Any]) -> Iterator[Facts]:
    """What the package publishes, unless enough is known; stated and published inputs are not mixed."""
    if "input.height" not in known:
        yield read_packaged(architecture)
    elif "classes" not in known:
        found = read_packaged(architecture)
        yield Facts(found.source, {name: one for name, one in found.values.items() if name == "classes"})


def _select(facts: Facts, *, with_network: bool) -> Facts:
    kept = {name: one for name, one in facts.values.items() if with_network or name not in _OF_THE_NETWORK}
    return Facts(facts.source, kept)


def _check_agreement(facts: list[Facts]) -> None:
    """Raise InvalidParameter where sources are about different networks."""
    for name, describe in (("architecture", _strip_tag), ("classes", len)):
        found = [(one.source, describe(one.values[name])) for one in facts if name in one.values]
        different = [one for one in found if one[1] != found[0][1]]
        if different:
            raise refuse(
                name,
                f"{found[0][0]} has {found[0][1]}, {different[0][0]} has {different[0][1]}; "
                "these are different networks",
            )


def _strip_tag(architecture: str) -> str:
    """The name without timm's tag of pretrained weights: `timm/resnet50.a1_in1k`."""
    return architecture.split(".", maxsplit=1)[0] if architecture.startswith("timm/") else architecture


def _check_crop(merged: Merged) -> None:
    """Raise InvalidParameter where a published resize is too small for a stated size."""
    values, resize = merged.values, merged.values.get("input.resize")
    if resize is None or "input.resize" not in merged.sources:
        return
    smallest = resize if isinstance(resize, int) else min(resize)
    if smallest < max(values.get("input.height", 0), values.get("input.width", 0)):
        raise InvalidParameter(
            f"input.resize: {resize} of {merged.sources['input.resize']} is smaller than the stated size; "
            "state it, too",
            field="input.resize",
        )
