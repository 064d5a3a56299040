"""How methods declare themselves, and the catalogue of all methods."""

from touchstone.fields import Access, invalid_parameter
from touchstone.methods.budget import SupportsCost, total_cost, total_footprint, total_rounds
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
from touchstone.methods.footprint import Footprint
from touchstone.methods.registry import build_card, catalogue, find

__all__ = [
    "SHARED",
    "Access",
    "Attack",
    "Certificate",
    "Cost",
    "E",
    "FixedBudget",
    "Footprint",
    "GradientAttack",
    "Info",
    "Kind",
    "Method",
    "MinimalNorm",
    "NormAttack",
    "RestartedAttack",
    "StepSize",
    "SupportsCost",
    "build_card",
    "catalogue",
    "find",
    "invalid_parameter",
    "total_cost",
    "total_footprint",
    "total_rounds",
]
