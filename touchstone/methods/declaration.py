"""How a method declares itself, and the catalogue of all that did.

A method is a frozen pydantic model: its fields are the parameters, its docstring the description, `info` its
place in the taxonomy. Declaring the class registers it; validation, HTTP forms, command-line flags, cards and
conformance tests all follow from the declaration alone.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationError,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue

from touchstone.errors import InvalidParameter, UnknownMethod
from touchstone.fields import Askings, Count, Defence, Distance, Norm, NormName, refuse_unknown

if TYPE_CHECKING:
    from pydantic_core import CoreSchema
    from torch import Tensor

    from touchstone.engine import Asking, Case, Counts, Plan, Subject

Kind = Literal["attack", "certificate"]
Access = Literal["gradients", "scores", "decisions", "transfer"]
"""What a method needs of the model it is judged on: its gradients, its logits, its answers alone, or no more
than the verdict.
"""


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
        """Whether the method looks into the model."""
        return "white-box" if self.access == "gradients" else "black-box"


@dataclass(frozen=True)
class Cost:
    """The most queries that a method may ask for, per image."""

    forward: int
    backward: int

    @classmethod
    def climbing(cls, steps: int) -> Cost:
        """Of `engine.climb`: a gradient a step, a second one where the loss is saturated, and a look at each
        point as 8 bits would hold it.
        """
        return cls(forward=3 * steps + 2, backward=2 * steps)

    @property
    def total(self) -> int:
        """Forward and backward passes added up: the unit of the cost budget."""
        return self.forward + self.backward


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
        """Bound the queries that one image may take; see `cost_of` for what repetitions add to it."""
        raise NotImplementedError

    def rounds(self) -> int:
        """How many rounds of questions a full run takes: what progress is counted in."""
        return self.cost().backward or self.cost().forward

    def decided(self, classes: int) -> dict[str, Any]:  # noqa: ARG002
        """Parameters that may be left open, as they follow from the others and from how many classes a model
        has.
        """
        return {}

    def done(self, forward: int, backward: int) -> int:
        """How many of the rounds these queries are."""
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
        """Show what is particular to the attack before what many attacks share."""
        schema = super().__get_pydantic_json_schema__(core_schema, handler)
        fields = schema.get("properties", {})
        shared = {name: fields.pop(name) for name in SHARED if name in fields}
        fields.update(shared)
        return schema

    def parts(self) -> Mapping[str, Attack]:
        """The attacks that this one runs one after the other, by the names that its result calls them."""
        return {}

    def run(self, case: Case) -> Plan:
        """Ask the questions of the attack and return what was found; see `touchstone.engine`."""
        raise NotImplementedError


SHARED = ("restarts", "eot", "defence")


class Certificate(Method):
    """A method that proves how far an answer reaches."""

    kind: ClassVar[Kind] = "certificate"

    def pool(self) -> dict[str, Any] | None:
        """The parameters under which counts may be added up over jobs; None where the method forbids it."""
        return None

    def run(self, subject: Subject) -> Asking[Counts]:
        """Ask until enough is counted; see `touchstone.engine.counted`."""
        raise NotImplementedError

    def bounds(self, counts: Counts) -> tuple[float, float]:
        """How low and how high the probability of the class that is counted may be, as far as counted."""
        raise NotImplementedError

    def result(self, counts: Counts) -> dict[str, Any]:
        """What the counts prove, as the fields of a certificate that belong to the method."""
        raise NotImplementedError


class InNorm(Attack):
    """An attack that works in one of several norms: `norm` is checked against the method's own."""

    norm: Norm = Field("l2", description="The norm in which the perturbation is measured.")

    @model_validator(mode="after")
    def _norm_is_the_methods(self) -> InNorm:
        if self.norm not in self.info.norms:
            raise ValueError(
                f"norm: {self.info.name} works in {', '.join(self.info.norms)}, not in {self.norm}"
            )
        return self


class MinimalNorm(InNorm):
    """An attack that looks for the nearest adversarial image, however far it is.

    What it finds is moved onto the 8-bit lattice afterwards, as near as it still fools the model there; see
    `engine.settled`.
    """


class FixedBudget(InNorm):
    """An attack that may move an image by at most `eps`."""

    norm: Norm = Field("linf", description="The norm in which the perturbation is bounded.")
    early_stop: bool = Field(
        True, description="Stop as soon as the image fools the model; false runs every step."
    )
    eps: Distance = Field(
        8 / 255,
        description="Radius of the ball around the image, in the box [0,1]; a number or a fraction: 8/255.",
        examples=["8/255"],
    )

    @model_validator(mode="after")
    def _fits_the_box(self) -> FixedBudget:
        if self.norm == "linf" and self.eps > 1:
            raise ValueError(
                f"eps: {self.eps:g} is larger than the whole box [0,1]: did you mean {self.eps:g}/255?"
            )
        return self


E = TypeVar("E", float, "Tensor")


class Stepping:
    """An attack of fixed budget whose steps have a length: its `step_size`, or a usual one that follows from
    the radius.
    """

    if TYPE_CHECKING:
        eps: float
        step_size: float | None

    def usual_step(self, eps: E) -> E:
        """The length of a step at this radius where none is given."""
        raise NotImplementedError

    def step(self, eps: E) -> E:
        """The length of a step at this radius."""
        return self.usual_step(eps) if self.step_size is None else 0 * eps + self.step_size

    def decided(self, classes: int) -> dict[str, Any]:  # noqa: ARG002
        """The length of its steps."""
        return {"step_size": self.step(self.eps)}


class GradientAttack(FixedBudget):
    """An attack of fixed budget that asks for gradients.

    One of another kind says so with the same line, `eot: Askings = 1`; nothing else is to be done for it.
    """

    eot: Askings = 1


class RestartedAttack(GradientAttack):
    """An attack that starts at random, and again where it failed; `run` is one attempt."""

    restarts: Count = Field(
        1, le=1_000, description="Attempts, each from its own start; later ones only where all before failed."
    )


class Costly(Protocol):
    """What has a cost, and rounds to count progress in."""

    def cost(self) -> Cost:
        """The most queries of one attempt at one image."""
        ...

    def rounds(self) -> int:
        """The rounds of one attempt."""
        ...


def cost_of(asked: Costly) -> Cost:
    """The most queries that one image may take, with all attempts and every asking behind a mean gradient."""
    attempt, restarts, eot = asked.cost(), *_repetitions(asked)
    return Cost(
        restarts * (attempt.forward + (eot - 1) * attempt.backward), restarts * eot * attempt.backward
    )


def rounds_of(asked: Costly) -> int:
    """The rounds of a full run, with all repetitions."""
    restarts, eot = _repetitions(asked)
    return restarts * eot * asked.rounds()


def _repetitions(asked: Costly) -> tuple[int, int]:
    return asked.restarts if isinstance(asked, RestartedAttack) else 1, getattr(asked, "eot", 1)


_registered: dict[str, type[Method]] = {}


@cache
def _discover() -> None:
    for package in ("touchstone.attacks", "touchstone.certificates"):
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
            importlib.import_module(f"{package}.{module.name}")


def catalogue(kind: Kind | None = None) -> Mapping[str, type[Method]]:
    """All methods by name, or those of one kind."""
    _discover()
    return MappingProxyType(
        {name: cls for name, cls in sorted(_registered.items()) if kind is None or cls.kind == kind}
    )


def find(name: str, kind: Kind | None = None) -> type[Method]:
    """The method of this name; `UnknownMethod` names those that exist."""
    methods = catalogue(kind)
    if name not in methods:
        what = kind or "method"
        raise UnknownMethod(
            f"there is no {what} named {name[:60]!r}; there are: {', '.join(methods) or 'none'}",
            field="method",
        )
    return methods[name]


def card(method: type[Method]) -> dict[str, Any]:
    """A method as `GET /v1/attacks/{name}` shows it: text, taxonomy, paper, JSON Schema, cost of the
    defaults, example.
    """
    info = method.info
    cost = cost_of(method())
    return {
        "name": info.name,
        "kind": method.kind,
        "title": info.title,
        "description": inspect.cleandoc(method.__doc__ or ""),
        "knowledge": info.knowledge,
        "access": info.access,
        "targeted": info.targeted,
        "norms": list(info.norms),
        "budget": info.budget,
        "scope": info.scope,
        "paper": {"title": info.paper, "url": info.url},
        "cost": {"forward": cost.forward, "backward": cost.backward},
        "schema": method.model_json_schema(),
        "example": method().model_dump(mode="json"),
    }


def invalid_parameter(error: ValidationError) -> InvalidParameter:
    """Turn pydantic's report into one failure that names the first field at fault and lists them all."""
    faults = []
    for fault in error.errors(include_url=False, include_context=False, include_input=False):
        field = ".".join(str(part) for part in fault["loc"])
        text = fault["msg"].removeprefix("Value error, ")
        if not field and ": " in text:
            field, text = text.split(": ", 1)
        faults.append({"field": field, "message": text})
    first = faults[0]
    detail = f"{first['field']}: {first['message']}" if first["field"] else first["message"]
    return InvalidParameter(detail, field=first["field"] or None, errors=faults)
