"""How a method declares itself.

A method is a frozen pydantic model: its fields are the parameters, its docstring the description, `info` its
place in the taxonomy. Declaring the class registers it; validation, HTTP forms, command-line flags, cards and
conformance tests all follow from the declaration alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationError,
)
from pydantic.json_schema import JsonSchemaValue

from touchstone.fields import (
    Access,
    Defence,
    NormName,
    invalid_parameter,
    refuse_unknown,
)
from touchstone.methods.cost import Cost
from touchstone.methods.footprint import ATTACK, CERTIFICATE, L1_IMAGES, Footprint

if TYPE_CHECKING:
    from pydantic_core import CoreSchema

    from touchstone.engine import Case, CertificateCase, Counts, Plan, PlanOf

Kind = Literal["attack", "certificate"]


@dataclass(frozen=True)
class Info:
    """A method's place in the taxonomy."""

    name: str
    title: str
    norms: tuple[NormName, ...]
    paper: str
    url: str
    access: Access = "gradients"
    targeted: bool = True
    budget: Literal["fixed", "minimal"] = "fixed"
    scope: Literal["local", "universal"] = "local"

    @property
    def knowledge(self) -> Literal["white-box", "black-box"]:
        """Whether the method uses the model's gradients."""
        return "white-box" if self.access == "gradients" else "black-box"


class Method(BaseModel):
    """What attacks and certificates have in common: parameters, a place in the taxonomy, a name in the
    catalogue.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    info: ClassVar[Info]
    kind: ClassVar[Kind]

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        if "info" not in vars(cls):
            return
        taken = _registered.setdefault(cls.info.name, cls)
        if (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
            raise TypeError(
                f"two methods are named {cls.info.name!r}: {taken.__module__} and {cls.__module__}"
            )
        _registered[cls.info.name] = cls

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Offer no other norms than those of the method."""
        schema = handler.resolve_ref_schema(handler(core_schema))
        norm = schema.get("properties", {}).get("norm", {})
        if "enum" in norm:
            norm["enum"] = [name for name in cls.info.norms if name in norm["enum"]]
        return schema

    def cost(self) -> Cost:
        """Bound the queries that one image may take; see `total_cost` for what repetitions add to it."""
        raise NotImplementedError

    def footprint(self) -> Footprint:
        """Bound the memory that a job on one image holds; see `total_footprint` for what EOT adds to it.

        A property test measures it over the whole catalogue.
        """
        raise NotImplementedError

    def rounds(self) -> int:
        """How many rounds of queries a full run takes; progress is counted in rounds."""
        return self.cost().backward or self.cost().forward

    def resolve_defaults(self, classes: int) -> dict[str, Any]:  # noqa: ARG002
        """Values of optional parameters, which follow from the other parameters and the number of classes."""
        return {}

    def completed_rounds(self, forward: int, backward: int) -> int:
        """How many rounds these queries complete."""
        return backward if self.cost().backward else forward

    @classmethod
    def parse(cls, parameters: Mapping[str, Any]) -> Method:
        """Validate parameters; the error names the field at fault and what would be right."""
        refuse_unknown(parameters, cls.model_fields, cls.info.name)
        try:
            return cls.model_validate(dict(parameters))
        except ValidationError as error:
            raise invalid_parameter(error) from None


class Attack(Method):
    """A method that looks for an adversarial image within a budget."""

    kind: ClassVar[Kind] = "attack"

    defence: Defence = Field(
        "none",
        description="What every image goes through before the model sees it, the last look included: jpeg-Q, "
        "bits-B or median-S. Gradients pass through it unchanged (BPDA).",
        examples=["jpeg-75"],
    )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Show the attack's own fields before those that many attacks share."""
        schema = super().__get_pydantic_json_schema__(core_schema, handler)
        fields = schema.get("properties", {})
        shared = {name: fields.pop(name) for name in SHARED if name in fields}
        fields.update(shared)
        return schema

    def parts(self) -> Mapping[str, Attack]:
        """The attacks that this one runs one after the other, by their names in the result."""
        return {}

    def footprint(self) -> Footprint:
        """Of an attack that holds a few points of the image at a time, and rounds them to 8 bits."""
        return replace(ATTACK, images=L1_IMAGES) if getattr(self, "norm", "") == "l1" else ATTACK

    def radius(self, channels: int) -> float:  # noqa: ARG002
        """The bound of a perturbation in the attack's norm; infinite where there is none."""
        return math.inf

    def run(self, case: Case) -> Plan:
        """Run the attack as a plan and return what was found; see `touchstone.engine`."""
        raise NotImplementedError


SHARED = ("restarts", "eot", "defence")


class Certificate(Method):
    """A method that proves a radius within which the prediction cannot change."""

    kind: ClassVar[Kind] = "certificate"

    def footprint(self) -> Footprint:
        """Of noisy copies at the size of the network's input, a pass of them at a time."""
        return CERTIFICATE

    def pooling_parameters(self) -> dict[str, Any] | None:
        """The parameters under which counts may be added up over jobs; None where the method forbids it."""
        return None

    def run(self, subject: CertificateCase) -> PlanOf[Counts]:
        """Query until enough votes are counted; see `touchstone.engine.count_votes`."""
        raise NotImplementedError

    def bounds(self, counts: Counts) -> tuple[float, float]:
        """Lower and upper bound of the probability of the counted class, from the counts so far."""
        raise NotImplementedError

    def result(self, counts: Counts) -> dict[str, Any]:
        """What the counts prove: the fields of the result that belong to the method."""
        raise NotImplementedError


_registered: dict[str, type[Method]] = {}
