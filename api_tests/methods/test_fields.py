"""Parameter types: the bounds that a field states are those that hold."""

from __future__ import annotations

from collections import Counter

import pytest
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel

from service.submissions.continuation import ContinuationFields
from touchstone.methods import FixedBudget, Info, build_card, catalogue, declaration
from touchstone.methods.prediction import Predict
from touchstone.training import recipes

RECIPES = [one for one in vars(recipes).values() if isinstance(one, type) and issubclass(one, BaseModel)]
MODELS = [*catalogue().values(), Predict, ContinuationFields, *RECIPES]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_field_bounds_are_not_overridden_by_the_bounds_of_the_type(model: type[BaseModel]) -> None:
    """Of two equal bounds pydantic keeps the last, which is that of the type."""
    for name, field in model.model_fields.items():
        bounds = Counter(type(one) for one in field.metadata if isinstance(one, Ge | Gt | Le | Lt))
        assert not [kind for kind, count in bounds.items() if count > 1], name


@pytest.mark.parametrize("name", [name for name, one in catalogue().items() if "norm" in one.model_fields])
def test_method_schema_offers_only_its_own_norms(name: str) -> None:
    shown = build_card(catalogue()[name])["schema"]["properties"]["norm"]
    assert shown["enum"] == list(catalogue()[name].info.norms)


def test_norm_field_of_a_new_method_follows_from_its_info(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(declaration, "_registered", {})

    class Flat(FixedBudget):
        info = Info(name="flat", title="Flat", norms=("l2",), paper="", url="")

    assert Flat.model_json_schema()["properties"]["norm"]["enum"] == ["l2"]
