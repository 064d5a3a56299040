"""How a method declares itself, and the catalogue of all that did."""

from touchstone.fields import Access, invalid_parameter
from touchstone.methods.budget import SupportsCost, total_cost, total_rounds
from touchstone.methods.cost import Cost
from touchstone.methods.declaration import SHARED, Attack, Certificate, Info, Kind, Method
from touchstone.methods.families import (
    E,
    FixedBudget,
    GradientAttack,
    MinimalNorm,
    NormAttack,
    RestartedAttack,
    StepSize,
)
from touchstone.methods.registry import build_card, catalogue, find

__all__ = [
    "SHARED",
    "Access",
    "Attack",
    "Certificate",
    "Cost",
    "SupportsCost",
    "E",
    "FixedBudget",
    "GradientAttack",
    "NormAttack",
    "Info",
    "Kind",
    "Method",
    "MinimalNorm",
    "RestartedAttack",
    "StepSize",
    "build_card",
    "catalogue",
    "total_cost",
    "find",
    "invalid_parameter",
    "total_rounds",
]
