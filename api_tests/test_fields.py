"""Parameter types: the bounds that a field states are those that hold."""

from __future__ import annotations

from collections import Counter

import pytest
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel

from service.continuing import Continue
from touchstone.methods import catalogue
from touchstone.models import recipes
from touchstone.predicting import Predict

RECIPES = [one for one in vars(recipes).values() if isinstance(one, type) and issubclass(one, BaseModel)]
MODELS = [*catalogue().values(), Predict, Continue, *RECIPES]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_no_bound_of_a_field_is_overridden_by_that_of_its_type(model: type[BaseModel]) -> None:
    """Of two equal bounds pydantic keeps the last, which is that of the type."""
    for name, field in model.model_fields.items():
        bounds = Counter(type(one) for one in field.metadata if isinstance(one, Ge | Gt | Le | Lt))
        assert not [kind for kind, count in bounds.items() if count > 1], name
