"""How a method declares itself, and the catalogue of all that did."""

from touchstone.fields import Access, invalid_parameter
from touchstone.methods.budget import Costly, cost_of, rounds_of
from touchstone.methods.cost import Cost
from touchstone.methods.declaration import SHARED, Attack, Certificate, Info, Kind, Method
from touchstone.methods.families import (
    E,
    FixedBudget,
    GradientAttack,
    InNorm,
    MinimalNorm,
    RestartedAttack,
    Stepping,
)
from touchstone.methods.registry import card, catalogue, find

__all__ = [
    "SHARED",
    "Access",
    "Attack",
    "Certificate",
    "Cost",
    "Costly",
    "E",
    "FixedBudget",
    "GradientAttack",
    "InNorm",
    "Info",
    "Kind",
    "Method",
    "MinimalNorm",
    "RestartedAttack",
    "Stepping",
    "card",
    "catalogue",
    "cost_of",
    "find",
    "invalid_parameter",
    "rounds_of",
]
