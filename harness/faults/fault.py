"""What a fault is: one function in harness/faults/catalog/, registered with what is known about it."""

from __future__ import annotations

import importlib
import pkgutil
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from harness.candidates.traits import Traits
from harness.verdict import UsageError, unknown_name
from reference.activations import SILU, Activation

CATEGORIES = (
    "scales",
    "codes",
    "layout",
    "gemm",
    "activation",
    "masking",
    "routing",
    "dispatch",
    "combine",
    "routed",
    "loading",
    "preparation",
    "races",
)
PREPARED = ("prepare", "masked_grouped_gemm")
"""Stages of a fault of weights, scales or alphas: it is planted where they are prepared, and in the GEMM of a candidate that
takes them as they are."""
BY_LOGFMT = "combine by logfmt"
EFFECTS = ("collapse", "shift", "none")
UNITS = ("block", "row", "expert", "call")


@dataclass(frozen=True)
class Fault:
    """One mistake.

    Attributes:
        name: its name everywhere; the function's.
        title: the first line of the function's docstring.
        apply: the function: takes the stage's call and the parameters, runs the stage with what it changed, and changes
            what came out. It always makes the mistake everywhere; the framework keeps it to the chosen experts, rows or
            blocks (harness.faults.merging).
        category: one of CATEGORIES.
        stages: stages of the candidate that it is planted in.
        bugs: ids of harness/faults/bugs.toml, the real bugs it is modelled on.
        killed_by: id of the rule that must kill it.
        effect: what it does end to end: "collapse" (accuracy near zero), "shift" (accuracy drops or wanders), "none".
        unit: smallest part of an output that it can be kept to: "block" (16 elements along k), "row", "expert", or "call"
            for faults of memory, order and state, which are wherever they are.
        strengths: how strong it can be, strongest first; the last one is one visible step. (None,) where it has none.
        random_data: whether normal random data can show it at all; else only traps do.
        simulated: what of the real bug a CPU cannot have, and what stands for it here; "" where it is the real thing.
        same_as: faults that are the same by definition wherever both can be seen: a diagnosis counts them as one.
        needs: what it is a mistake about, a key of `_needs_met` or the name of a format that activations or weights must
            have; "" for any operands, activation and transport.
    """

    name: str
    title: str
    apply: Callable[[Any, Parameters], None]
    category: str
    stages: tuple[str, ...]
    bugs: tuple[str, ...]
    killed_by: str
    effect: str
    unit: str = "row"
    strengths: tuple[Any, ...] = (None,)
    random_data: bool = True
    simulated: str = ""
    same_as: tuple[str, ...] = ()
    needs: str = ""

    def unfit(self, traits: Traits) -> str:
        """Return why it cannot be planted in a candidate with these traits, for what it needs, or ""."""
        if self.needs == BY_LOGFMT and "logfmt" not in traits.combine_transports:
            back = " and ".join(traits.combine_transports)
            return f"it is about {self.needs}, and the candidate combines by {back}"
        has = f"multiplies {' with '.join(traits.formats)} and applies {traits.gated}"
        if self.category == "loading" and traits.formats != ("nvfp4", "nvfp4"):
            return f"it is about NVFP4 checkpoints, and the candidate {has}"
        met = _needs_met(traits).get(self.needs, self.needs in traits.formats)
        return "" if met else f"it is about {self.needs}, and the candidate {has}"


def _needs_met(traits: Traits) -> dict[str, bool]:
    """Return which needs of faults a candidate's formats and its activation meet."""
    activations, weights = traits.formats
    way = Activation.of(traits.gated)
    return {
        "": True,
        BY_LOGFMT: True,
        "nvfp4": activations == weights == "nvfp4",
        "weights in nvfp4": weights == "nvfp4",
        "block scales": activations.startswith(("nvfp4", "mx")),
        "activations as they are": activations in {"bf16", "fp16"},
        "activations in FP8 with a scale of each expert": activations == "fp8",
        "powers of two as scales of activations": activations.startswith("mx"),
        "powers of two as scales of weights": weights.startswith("mx"),
        "silu": replace(way, up_first=False, interleave=0) == SILU,
        "gelu": way.kind == "gelu",
        "a limit": bool(way.limit),
        "a limit, and activations as they are": bool(way.limit) and activations in {"bf16", "fp16"},
        "a factor in the sigmoid": way.alpha != 1,
        "a bias of up": bool(way.beta),
    }


@dataclass
class Parameters:
    """What a planted fault works with.

    Attributes:
        strength: one of the fault's strengths.
        random: for choices of the fault's own; seeded by the planting, it goes on from call to call, as a race does.
        place_seed: of the places that the fault is kept to: the same data gives the same places in every call.
        weakest: the fault is to be as small as it can be.
        state: kept from call to call, for faults about earlier calls.
    """

    strength: Any
    random: random.Random
    place_seed: str = ""
    weakest: bool = False
    state: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Planting:
    """A fault with its parameters: `alpha_of_neighbour` everywhere at full strength, `...@7` drawn from seed 7, `...@weakest`.

    Attributes:
        fault: which.
        seed: of the experts, rows, blocks and the strength; None for everywhere at full strength.
        weakest: one row of one expert, one block, the last strength.
    """

    fault: Fault
    seed: int | None = None
    weakest: bool = False

    def __str__(self) -> str:
        if self.weakest:
            return f"{self.fault.name}@weakest" + (f"{self.seed}" if self.seed else "")
        return self.fault.name if self.seed is None else f"{self.fault.name}@{self.seed}"

    @property
    def everywhere(self) -> bool:
        """Whether the fault is not kept to a part of the output."""
        return self.fault.unit == "call" or (self.seed is None and not self.weakest)

    def parameters(self) -> Parameters:
        """Return fresh parameters; the same planting always gives the same."""
        seed = f"{self.fault.name} {self.seed} {self.weakest}"
        rng = random.Random(seed)
        strengths = self.fault.strengths
        strength = strengths[0]
        if self.weakest:
            strength = strengths[-1]
        elif self.seed is not None:
            strength = rng.choice(strengths)
        return Parameters(strength, rng, f"{seed} places", self.weakest)


_CATALOG: dict[str, Fault] = {}


def fault(
    *,
    category: str,
    stages: str | tuple[str, ...],
    bugs: tuple[str, ...],
    killed_by: str,
    effect: str,
    unit: str = "row",
    strengths: tuple[Any, ...] = (None,),
    random_data: bool = True,
    simulated: str = "",
    same_as: tuple[str, ...] = (),
    needs: str = "",
) -> Callable[[Callable[[Any, Parameters], None]], Callable[[Any, Parameters], None]]:
    """Register a function as a fault; the arguments are the attributes of `Fault`."""

    def register(function: Callable[[Any, Parameters], None]) -> Callable[[Any, Parameters], None]:
        name = function.__name__
        for what, value, known in (
            ("category", category, CATEGORIES),
            ("effect", effect, EFFECTS),
            ("unit", unit, UNITS),
        ):
            if value not in known:
                raise ValueError(f"fault {name}: {what} must be one of {', '.join(known)}, got {value!r}")
        if name in _CATALOG and _CATALOG[name].apply.__module__ != function.__module__:
            raise ValueError(f"fault {name}: defined in {_CATALOG[name].apply.__module__} already")
        if not function.__doc__:
            raise ValueError(f"fault {name}: the docstring must say what goes wrong")
        _CATALOG[name] = Fault(
            name, function.__doc__.splitlines()[0].rstrip("."), function, category,
            (stages,) if isinstance(stages, str) else stages, bugs, killed_by, effect, unit, strengths, random_data,
            simulated, same_as, needs,
        )  # fmt: skip
        return function

    return register


def all_faults() -> dict[str, Fault]:
    """Return every fault by name, in order of category and definition. Imports the catalog, and torch with it."""
    from harness.faults import catalog as package

    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return dict(sorted(_CATALOG.items(), key=lambda item: CATEGORIES.index(item[1].category)))


def find_fault(name: str) -> Fault:
    """Return the fault of that name.

    Raises:
        UsageError: no such fault; the message gives the nearest name.
    """
    known = all_faults()
    if name not in known:
        raise unknown_name("fault", name, known, listing=f"`harness list faults` shows all {len(known)}")
    return known[name]


def parse_planting(text: str) -> Planting:
    """Return the planting that a string describes: NAME, NAME@SEED, NAME@weakest or NAME@weakestSEED.

    Raises:
        UsageError: not of that form, or no such fault.
    """
    name, at, rest = text.partition("@")
    found = find_fault(name)
    if not at:
        return Planting(found)
    weakest = rest.startswith("weakest")
    digits = rest.removeprefix("weakest")
    if not (digits.isdigit() or (weakest and not digits)):
        raise UsageError(f"fault {text!r}: after @ must come a seed, 'weakest', or 'weakest' and a seed")
    return Planting(found, int(digits) if digits else None, weakest)
