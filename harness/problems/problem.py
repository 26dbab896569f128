"""A problem: one masked MoE, written as one short string and rebuilt from it. No torch here.

    v2:4x160x256x128:64,0,3,160:normal:20394:e2m1_ties+relu2
    version : experts x capacity x hidden x inter : masked_m : data : seed : traps and options

`masked_m` may repeat: `0*30,128*2`. `harness.problems.tensors` fills in the numbers; the version says how: those of v2 are
the same bytes on every device and in every version of torch (harness.problems.draws). A string without one is of version
1, whose numbers torch's generator on the CPU makes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from harness.candidates.protocol import Traits
from harness.problems.traps import IN_ALPHA, TRAPS, Place
from harness.verdict import UsageError

NEWEST = 2
"""Version of the problems that runs draw."""

WEIGHT_SEEDS = 8
"""Different weights of a shape: which of them a problem has is its seed modulo this."""

DATA = {
    "normal": "Gaussian activations and weights, distinct scales per expert",
    "spread": "Gaussian, each block times its own power of two: few dot products are exact in float32",
    "grid": "few codes and power-of-two block scales: dot products stay exact up to k 7,168",
}

OPTIONS = {
    "relu2": "activation relu2 instead of silu",
    "prequantized": "the layer gets a quantized pair instead of bfloat16",
    "float32_out": "the GEMM stores float32",
    "float16_out": "the GEMM stores float16",
    "no_alpha": "the GEMM gets no alpha",
    "sharded": "the rank holds some experts of more, behind an offset",
    "redundant": "experts lie in slots of an order of their own, some twice, and tokens name slots",
    "whole_layer": "the stages around the layer take all extents as they are, capacity being the tokens of a rank",
}
_DECLARED = frozenset(
    {"relu2", "float32_out", "float16_out", "no_alpha", "prequantized"}
)  # those that a candidate's traits allow


LARGEST = (1 << 63) - 1  # of a seed and of every extent: what a generator of torch and a tensor's shape take


@dataclass(frozen=True)
class ShapeTrap:
    """One trap that follows from a problem's extents.

    Attributes:
        name: what it is counted under.
        sentence: what it is, for `harness list`.
        holds: whether a problem has it.
        possible: whether a candidate with these traits can be given it at all.
    """

    name: str
    sentence: str
    holds: Callable[[Problem], bool]
    possible: Callable[[Traits], bool] = lambda _: True


SHAPE_TRAPS = {
    trap.name: trap
    for trap in (
        ShapeTrap("empty_expert", "an expert with masked_m = 0", lambda p: 0 in p.masked_m),
        ShapeTrap("full_expert", "an expert with masked_m = capacity", lambda p: p.capacity in p.masked_m),
        ShapeTrap("one_row_expert", "an expert with masked_m = 1", lambda p: 1 in p.masked_m),
        ShapeTrap(
            "one_expert", "a single expert",
            lambda p: p.experts == 1, possible=lambda t: t.min_experts <= 1,
        ),
        ShapeTrap(
            "ragged_capacity", "capacity not a multiple of 128",
            lambda p: p.capacity % 128 != 0, possible=lambda t: t.m_multiple % 128 != 0,
        ),
        ShapeTrap(
            "ragged_blocks", "hidden / 16 not a multiple of 4: scale columns are padded",
            lambda p: p.hidden // 16 % 4 != 0, possible=lambda t: t.width_multiple % 64 != 0,
        ),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Drawn:
    """What may be drawn for a rule beside shapes, data and seed.

    Attributes:
        finite: no traps that make inputs NaN or infinite: for rules that compare outputs bit for bit.
        options: keys of OPTIONS; those that a candidate has to declare are drawn where it does.
        into: places of traps that are not drawn for every rule (harness.problems.traps).
    """

    finite: bool = False
    options: tuple[str, ...] = ()
    into: tuple[Place, ...] = ()

    def traps_for(self, traits: Traits) -> list[str]:
        """Return the traps that may be drawn for a candidate, to be written into the tensors."""
        return [
            name
            for name, trap in TRAPS.items()
            if trap.into in ("quantized", *self.into)
            and (trap.finite or not self.finite)
            and trap.in_contract(traits)
        ]

    def options_for(self, traits: Traits) -> list[str]:
        """Return the options that may be drawn for a candidate."""
        takes = {*traits.activations, *(f"{dtype}_out" for dtype in traits.out_dtypes)}
        takes |= set() if traits.alpha_required else {"no_alpha"}
        takes |= set() if traits.without_scales else {"prequantized"}
        return [option for option in self.options if option not in _DECLARED or option in takes]


@dataclass(frozen=True)
class Problem:
    """The inputs of one masked MoE, without their numbers.

    Attributes:
        experts: experts on this rank.
        capacity: rows per expert.
        hidden: width of the tokens, k of the first GEMM.
        inter: width of one half of the first GEMM's output, k of the second.
        masked_m: valid leading rows of each expert.
        data: a key of DATA.
        seed: of the numbers.
        extras: traps that are written into its tensors and options, keys of TRAPS and OPTIONS.
        version: how the numbers follow from the rest, 1 or 2.
    """

    experts: int
    capacity: int
    hidden: int
    inter: int
    masked_m: tuple[int, ...]
    data: str = "normal"
    seed: int = 0
    extras: frozenset[str] = field(default_factory=frozenset)
    version: int = NEWEST

    def __post_init__(self) -> None:
        self._check_numbers()
        if not 1 <= self.version <= NEWEST:
            raise UsageError(
                f"problem: the version must be v1 to v{NEWEST}, got v{self.version}: of a newer release?"
            )
        if len(self.masked_m) != self.experts:
            raise UsageError(f"problem: masked_m must have {self.experts} entries, got {len(self.masked_m)}")
        if any(not 0 <= rows <= self.capacity for rows in self.masked_m):
            raise UsageError(f"problem: masked_m must lie in [0, {self.capacity}], got {list(self.masked_m)}")
        if self.data not in DATA:
            raise UsageError(f"problem: data must be one of {', '.join(DATA)}, got {self.data!r}")
        if unknown := sorted(self.extras - TRAPS.keys() - OPTIONS.keys()):
            raise UsageError(
                f"problem: unknown trap or option {unknown[0]!r}; known: {', '.join([*TRAPS, *OPTIONS])}"
            )
        if {"float32_out", "float16_out"} <= self.extras:
            raise UsageError("problem: a GEMM has one output type; give float32_out or float16_out, not both")

    def _check_numbers(self) -> None:
        for name, least in (("experts", 1), ("capacity", 1), ("hidden", 16), ("inter", 16), ("seed", 0)):
            value = getattr(self, name)
            if value < least:
                raise UsageError(f"problem: {name} must be at least {least}, got {value}")
            if value > LARGEST:
                raise UsageError(f"problem: {name} must be at most {LARGEST}, got {value}")
            if name in {"hidden", "inter"} and value % 16:
                raise UsageError(f"problem: {name} must be a multiple of 16, got {value}")

    def __str__(self) -> str:
        shape = f"{self.experts}x{self.capacity}x{self.hidden}x{self.inter}"
        text = f"{shape}:{_runs(self.masked_m)}:{self.data}:{self.seed}"
        text = text if self.version == 1 else f"v{self.version}:{text}"
        return f"{text}:{'+'.join(sorted(self.extras))}" if self.extras else text

    @property
    def tokens(self) -> int:
        """Valid rows over all experts."""
        return sum(self.masked_m)

    @property
    def least_bytes(self) -> int:
        """Memory that its tensors take at least: tokens in bfloat16, both weights as packed codes, the GEMM's output."""
        rows, weights = self.experts * self.capacity, 3 * self.experts * self.hidden * self.inter
        return 2 * rows * (self.hidden + 2 * self.inter) + weights // 2

    @property
    def activation(self) -> str:
        """Activation of the layer: "silu" or "relu2"."""
        return "relu2" if "relu2" in self.extras else "silu"

    @property
    def out_dtype(self) -> str:
        """Output type of the GEMM under test."""
        for word in ("float32", "float16"):
            if f"{word}_out" in self.extras:
                return word
        return "bfloat16"

    def traps(self) -> list[str]:
        """Return the traps that this problem really holds: written ones need valid rows and blocks of their own."""
        asked = [trap for name, trap in TRAPS.items() if name in self.extras and self.tokens > 0]
        missing = {"magnitude_spread"} if self.experts == 1 else set()
        if self.data == "grid":  # they would take the data off it
            missing = {"magnitude_spread", "outlier_block"}
        with_rows = sum(count > 0 for count in self.masked_m)
        if (
            with_rows < 2
        ):  # an output of nothing but zeros says nothing; one expert is not both large and small
            missing |= {"alpha_zero", "alpha_specials"} | ({"small"} if "large" in self.extras else set())
        if "no_alpha" in self.extras:
            missing |= {trap.name for trap in asked if trap.into in IN_ALPHA}
        if self.out_dtype == "float16":  # results that are not scaled down would overflow it
            missing |= {"alpha_one"}
        free = self._free_blocks()
        for trap in asked:
            if trap.block and trap.where == "blocks":
                free -= trap.blocks
                missing |= {trap.name} if free < 0 else set()
        shape = [name for name, trap in SHAPE_TRAPS.items() if trap.holds(self)]
        return shape + [trap.name for trap in asked if trap.name not in missing]

    def _free_blocks(self) -> int:
        """Return how many blocks are left for traps of blocks, at least, in tokens and intermediate alike."""
        filled = [TRAPS[name].where for name in self.extras if name in TRAPS]
        rows = self.tokens - filled.count("expert") * max(self.masked_m) - filled.count("row")
        taken = sum(count > 0 for count in self.masked_m) if "outlier_block" in self.extras else 0
        return rows * (min(self.hidden, self.inter) // 16) - taken


def parse_problem(text: str) -> Problem:
    """Return the problem that a string describes; `parse_problem(str(problem)) == problem`.

    Raises:
        UsageError: the string is not of the form shown in the module's docstring.
    """
    version, parts = 1, text.strip().split(":")
    if versioned := re.fullmatch("v([1-9][0-9]{0,8})", parts[0]):
        version, parts = int(versioned[1]), parts[1:]
    shape = parts[0].split("x") if parts else []
    numbers = [*shape, *parts[3:4]]
    if len(parts) not in {4, 5} or len(shape) != 4 or not all(map(_is_number, numbers)):
        raise UsageError(
            f"problem: {text!r} is not of the form v2:EXPERTSxCAPACITYxHIDDENxINTER:MASKED_M:DATA:SEED[:TRAP+OPTION], "
            "for example v2:4x160x256x128:64,0,3,160:normal:20394:e2m1_ties"
        )
    names = ("experts", "capacity", "hidden", "inter", "seed")
    experts, capacity, hidden, inter, seed = map(_number, names, numbers)
    extras = frozenset(parts[4].split("+")) if len(parts) == 5 else frozenset()
    return Problem(
        experts, capacity, hidden, inter, _parse_runs(parts[1], text), parts[2], seed, extras, version
    )


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()  # isdigit() and \d take the digits of every script


def _number(name: str, text: str) -> int:
    """Return the number that ASCII digits stand for. Raises UsageError where it is too large for any place in a problem."""
    if len(text) > 40 or int(text) > LARGEST:
        raise UsageError(f"problem: {name} must be at most {LARGEST}, got {text:.40}")
    return int(text)


def _runs(numbers: Iterable[int]) -> str:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][0] == number:
            runs[-1][1] += 1
        else:
            runs.append([number, 1])
    return ",".join(
        f"{number}*{times}" if times > 2 else ",".join([str(number)] * times) for number, times in runs
    )


def _parse_runs(text: str, whole: str) -> tuple[int, ...]:
    numbers: list[int] = []
    for run in text.split(","):
        match = re.fullmatch(r"([0-9]+)(?:\*([0-9]+))?", run)
        if not match or len(numbers) + _number("masked_m", match[2] or "1") > 1 << 16:
            raise UsageError(f"problem: masked_m must be numbers such as 64,0*3,1, got {text!r} in {whole!r}")
        numbers.extend([_number("masked_m", match[1])] * int(match[2] or "1"))
    return tuple(numbers)
